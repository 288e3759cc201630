"""Texts about what comes from elsewhere: whole characters, descriptions that can be compared, excerpts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from textgym.hashing import hashed_id

__all__ = ["described", "excerpt", "plain", "whole"]

EXCERPT = 200  # characters
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def whole(text: str) -> str:
    """The text with ``?`` for each half of a surrogate pair, which no file and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def excerpt(text: str) -> str:
    """The beginning of somebody else's words in one line, nothing in it that a terminal would obey."""
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * EXCERPT])
    line = " ".join(line.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}…"


def plain(value: object) -> Any:
    """The value as JSON holds it, alike in every process: sets in order, objects as texts without addresses.

    A model, or whatever else has parameters, is told from others by a digest of its weights, and a tokenizer by one of
    its vocabulary and template.
    """
    if isinstance(value, str):
        return whole(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {whole(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return whole(_described_object(value))


def described(value: object) -> str:
    """The value in one text, alike in every process; see :func:`plain`."""
    found = plain(value)
    return found if isinstance(found, str) and not isinstance(value, str) else repr(found)


def _described_object(value: Any) -> str:
    if isinstance(value, re.Pattern):  # its own repr is cut off
        return f"re.compile({value.pattern!r}, {value.flags})"
    if hasattr(value, "named_parameters"):
        from textgym.adapters import fingerprint

        return f"{type(value).__name__}(weights {fingerprint(value.parameters())[:16]})"
    if hasattr(value, "get_vocab"):
        content = [value.get_vocab(), getattr(value, "chat_template", None)]
        return f"{type(value).__name__}(vocabulary {hashed_id(json.dumps(content, sort_keys=True))})"
    return _ADDRESS.sub("", repr(value))
