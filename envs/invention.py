"""What the built-in data of several tasks are invented with: chance, names and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from textgym.episode import Sample
from textgym.hashing import hashed_id

__all__ = ["CITIES", "DAYS", "PEOPLE", "TOWNS", "Chance", "capitalised", "prompted", "words"]

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """The words of a text, between blanks."""
    return tuple(text.split())


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, and the others as they are."""
    return text[0].upper() + text[1:]


PEOPLE = words(
    "Adam Anna Anton Arthur Ben Carl Clara David Edward Emma Felix George Grace Henry Hugo Iris Ivan Jack Jane Kate "
    "Leo Maria Martin Mary Max Michael Noah Olga Paul Peter Robert Rosa Sam Thomas Tina Tom Victor William"
)
CITIES = words("Rome Paris London Berlin Oslo Moscow Bern Venice Madrid Lisbon Prague")
TOWNS = words(
    "Birdwood Blueford Burton Camberg Eastham Eastwood Goldfield Greenfield Kingston Lakewood Longford Marham Marlow "
    "Milton Newport Northport Redwood Southport Stoneham Stonewood Westfield Westwood Whitefield Woodland"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


class Chance:
    """Draws that are always the same.

    Args:
        seed: Those of another seed are independent of these.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        self.rng = np.random.default_rng(np.random.SeedSequence(seed))

    def one_of(self, options: Sequence[T]) -> T:
        """Each is as likely."""
        return options[int(self.rng.integers(len(options)))]

    def some_of(self, options: Sequence[T], n: int) -> list[T]:
        """n different ones, or all of them, in random order."""
        return [options[i] for i in self.rng.permutation(len(options))[:n].tolist()]

    def happens(self, probability: float) -> bool:
        """Whether it does."""
        return bool(self.rng.random() < probability)

    def between(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))


def prompted(prompt: str, references: Sequence[str], **meta: object) -> Sample:
    """A sample whose id is a hash of its prompt."""
    return Sample(hashed_id(prompt), prompt, tuple(references), meta)
