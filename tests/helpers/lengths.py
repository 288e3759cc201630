"""How long texts are for the built-in model."""

from collections.abc import Sequence

from textgym.rendering import load_tokenizer


def longest(texts: Sequence[str]) -> int:
    """Tokens of the longest text."""
    return max(map(len, load_tokenizer(None)(list(texts))["input_ids"]))
