"""Hashes of texts: ids and draws that are the same in every process and on every machine."""

from __future__ import annotations

import hashlib

__all__ = ["hashed_id", "hashed_share"]


def hashed_id(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashed_share(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone, evenly distributed: the same digits as a fraction."""
    return int(hashed_id(text), base=16) / 2**64
