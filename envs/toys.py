"""Toys: a small random model with any tokenizer learns them from scratch in seconds, where the algorithm works.

Each token is rewarded at once, by what it adds to a measure of the text so far. The measures know characters and words,
not tokens, and a token that is partly right earns its part: with thousands of tokens to choose from, random ones then
show the way from the start.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import product, repeat
from statistics import fmean
from types import MappingProxyType

from textgym.data import SPLITS, split_of
from textgym.episode import Episode, Sample
from textgym.errors import DataError
from textgym.hashing import hashed_share
from textgym.rewards import Reward, Score
from textgym.task import Task

__all__ = ["Copy", "Identity", "Increasing", "Progress", "Toy", "increasing_share", "matching_share"]

LETTERS = "abcd"
SHOWN = range(1, 9)
N_LETTERS = 4  # of a full reply of Identity and Copy
N_NUMBERS = 5  # of a full reply of Increasing
LARGEST_START = 14

_NUMBER = re.compile(r"([0-9]{1,18}),?")


class Progress(Reward):
    """Asked after each token: the rise of a measure of the agent's text, which starts at 0 for an empty one.

    An episode's rewards add up to the measure of its whole text. They are the shaping rewards of a potential without
    discount, with no other reward beside them (Ng, Harada and Russell, "Policy invariance under reward
    transformations", 1999, equation 2). What was given before stands in ``episode.reward_parts``.

    Args:
        measure: Of a text about a sample.
    """

    when = "token"

    def __init__(self, measure: Callable[[Sample, str], float]) -> None:
        self.measure = measure

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The rise since the last token of each episode."""
        return [
            Score(self.measure(episode.sample, episode.response) - episode.reward_parts.get(self.name, 0.0))
            for episode in episodes
        ]


def matching_share(text: str, wanted: Iterable[str], n: int) -> float:
    """The share of characters that are those wanted, place by place, of ``n`` or of all that there are; in [0, 1].

    White space is passed over, so that any tokenizer's way to write a letter counts alike. Characters at places where
    none is wanted do not match.
    """
    written = "".join(text.split())
    return sum(a == b for a, b in zip(written, wanted, strict=False)) / max(n, len(written))


def increasing_share(text: str, above: int, n: int) -> float:
    """The share of words that are numbers, each larger than ``above`` and than all right ones before; in [0, 1].

    It is the share of ``n`` words or of all that there are. A number has at most 18 digits, and may have a comma after
    it.
    """
    words = text.split()
    right = 0
    for number in (int(match[1]) for word in words if (match := _NUMBER.fullmatch(word))):
        if number > above:
            right, above = right + 1, number
    return right / max(n, len(words))


class Toy(Task):
    """A task that is a measure of the reply, in [0, 1], given out token by token; all splits have the same samples."""

    recipe = MappingProxyType(
        {
            "total_timesteps": 40_000,
            "warm_start.epochs": 10,
            "warm_start.learning_rate": 3e-4,
            "ppo.n_episodes": 256,
            "ppo.learning_rate": 3e-4,
            "ppo.kl_coef": 0.0,
            "validation.evaluations": 8,
        }
    )

    def __init__(self) -> None:
        self.reward = Progress(self.measure)

    @abstractmethod
    def measure(self, sample: Sample, text: str) -> float:
        """How well the text, finished or not, does for the sample; 0.0 where it is empty."""

    @abstractmethod
    def all_samples(self) -> list[Sample]:
        """The samples of all splits."""

    def samples(self, split: str) -> list[Sample]:
        """All samples, whatever the split.

        Raises:
            DataError: There is no such split.
        """
        if split not in (*SPLITS, "all"):
            raise DataError(f"{type(self).__name__} has no split {split!r}; it has {', '.join(SPLITS)} and all.")
        return self.all_samples()

    def demonstration(self, sample: Sample) -> list[str]:
        """The first words of the reference, as many as a hash of the sample's id says: most stop too early."""
        words = sample.references[0].split()
        n = 1 + int(hashed_share(f"demonstration\n{sample.id}") ** 2 * len(words))
        return [" " + " ".join(words[:n])]

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """``solved``: the share of replies that are entirely right."""
        if not episodes:
            return {}
        return {"solved": fmean(self.measure(episode.sample, episode.response) == 1.0 for episode in episodes)}


class Identity(Toy):
    """The prompt shows a letter up to eight times, ``"b b b"``; the agent goes on with it: ``" b b b b"``, or longer.

    It is SB3's ``IdentityEnv`` in text: the action to take is the one observed. Ending the reply need not be learned.
    """

    max_new_tokens = 8

    def all_samples(self) -> list[Sample]:
        """A sample for every letter and number of times."""
        return [
            Sample(letter * shown, " ".join(letter * shown), (" " + " ".join(letter * N_LETTERS),), {"letter": letter})
            for letter, shown in product(LETTERS, SHOWN)
        ]

    def measure(self, sample: Sample, text: str) -> float:
        """The share of the letter among four characters, or among all if there are more."""
        return matching_share(text, repeat(sample.meta["letter"]), N_LETTERS)


class Increasing(Toy):
    """The prompt shows a number, ``"7:"``; the agent goes on with larger and larger ones: ``" 8 9 10 11 12"``.

    Any larger number is right, as in the toy task of RL4LMs (Ramamurthy et al., "Is reinforcement learning (not) for
    natural language processing?", 2022), so a large step earns as much as a small one and leaves less room.
    """

    max_new_tokens = 16

    def all_samples(self) -> list[Sample]:
        """A sample a number to start from."""
        return [_increasing_sample(start) for start in range(LARGEST_START + 1)]

    def measure(self, sample: Sample, text: str) -> float:
        """The share of larger and larger numbers among five words, or among all if there are more."""
        return increasing_share(text, sample.meta["start"], N_NUMBERS)


def _increasing_sample(start: int) -> Sample:
    numbers = range(start + 1, start + 1 + N_NUMBERS)
    return Sample(str(start), f"{start}:", ("".join(f" {number}" for number in numbers),), {"start": start})


class Copy(Toy):
    """The prompt shows four letters, ``"b d a a:"``; the agent copies them and writes no more: ``" b d a a"``.

    Its samples are divided by a hash of the prompt, so that the test's have not been trained on.
    """

    max_new_tokens = 10

    def all_samples(self) -> list[Sample]:
        """A sample for every choice of four letters."""
        texts = [" ".join(letters) for letters in product(LETTERS, repeat=N_LETTERS)]
        return [Sample(text, f"{text}:", (f" {text}",), {"letters": text.replace(" ", "")}) for text in texts]

    def samples(self, split: str) -> list[Sample]:
        """The samples of a split.

        Raises:
            DataError: There is no such split.
        """
        return [sample for sample in super().samples(split) if split in ("all", split_of(sample.id))]

    def measure(self, sample: Sample, text: str) -> float:
        """The share of characters that are the prompt's, place by place, of four or of all if there are more."""
        return matching_share(text, sample.meta["letters"], N_LETTERS)
