"""Sentiment continuation: goes on with a review's opening, and should make it a favourable one.

The task of RL4LMs (Ramamurthy et al., "Is Reinforcement Learning (Not) for Natural Language Processing?", 2023,
section 4), there with reviews of IMDB. The reward is a small sentiment classifier's probability of *positive*; it is
trained by ``scripts/build_reward_models.py`` and ships with the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.invention import Chance
from textgym.envs.recipe import COMMON
from textgym.envs.report import LENGTH, mean_scores
from textgym.episode import Episode, Sample
from textgym.rendering import load_tokenizer
from textgym.rewards.core import Reward
from textgym.rewards.lexical import DistinctN
from textgym.rewards.models import RewardModel

__all__ = ["SENTIMENT_MODEL", "SentimentContinuation", "review"]

SENTIMENT_MODEL = Path(__file__).parent / "data" / "sentiment"
"""The folder of the classifier, which reads the built-in model's tokens."""

N_SAMPLES = 5000
SEED = (2026, 11, 2)
OPENING_WORDS = 16
NOTHING = "..."  # what the classifier reads of an empty continuation
THINGS = ("film", "novel", "play", "series", "concert", "musical", "exhibition", "documentary", "game", "album")
OCCASIONS = (
    "with my brother", "last night", "on a rainy Sunday", "because a friend insisted", "in a small theatre",
    "after work", "with my whole family", "on the train", "without great expectations", "for the second time",
    "on my birthday", "in one sitting", "with two colleagues", "during the holidays", "alone",
)  # fmt: skip
SUBJECTS = (
    "a detective", "two sisters", "a retired captain", "a village doctor", "three students", "a forgotten painter",
    "a lonely astronaut", "a family of bakers", "an honest lawyer", "a young queen", "a jazz trumpeter", "a dog",
    "an old clockmaker", "a nurse", "a football team",
)  # fmt: skip
PLACES = ("Rome", "Lisbon", "Chicago", "Bombay", "a fishing village", "the Alps", "Paris", "Texas", "Cairo", "Kyoto")
ASPECTS = (
    "the acting", "the music", "the plot", "the ending", "the pacing", "the dialogue", "the camera work",
    "the humour", "the lighting", "the cast", "the first half", "the style",
)  # fmt: skip
GOOD = (
    "wonderful", "moving", "brilliant", "charming", "clever", "superb", "delightful", "fresh", "gripping", "warm",
    "beautiful", "funny", "excellent", "elegant", "convincing",
)  # fmt: skip
BAD = (
    "dull", "terrible", "awful", "boring", "clumsy", "weak", "annoying", "stale", "endless", "cold",
    "ugly", "silly", "dreadful", "shallow", "ridiculous",
)  # fmt: skip
GOOD_VERDICTS = (
    "I loved every minute of it.", "I would see it again tomorrow.", "It deserves every prize.",
    "I left with a smile.", "Do not miss it.", "It stayed with me for days.",
)  # fmt: skip
BAD_VERDICTS = (
    "I wanted my money back.", "I left before the end.", "It was a waste of an evening.",
    "I fell asleep twice.", "Avoid it.", "I have already forgotten it.",
)  # fmt: skip
METRICS = {"distinct_2": DistinctN(2), "length": LENGTH}


def review(chance: Chance) -> tuple[str, str, bool]:
    """A random opening, which does not judge, a continuation, and whether that is favourable; half of them are."""
    one = chance.one_of
    opening = f"I saw this {one(THINGS)} {one(OCCASIONS)}. It is about {one(SUBJECTS)} in {one(PLACES)}."
    positive = one((False, True))
    kind, other = (GOOD, BAD) if positive else (BAD, GOOD)
    verdict = one(GOOD_VERDICTS if positive else BAD_VERDICTS)
    first, second = (ASPECTS[i] for i in chance.rng.choice(len(ASPECTS), 2, replace=False))
    forms = (
        f"{first.capitalize()} is {one(kind)} and {second} {one(kind)}. {verdict}",
        f"{first.capitalize()} may be {one(other)}, but {second} is {one(kind)}. {verdict}",
        f"I found {first} {one(kind)}. {verdict}",
        f"{verdict} {first.capitalize()} is not {one(other)} at all, and {second} is {one(kind)}.",
    )
    return opening, one(forms), positive


@cache
def _reviews() -> tuple[Sample, ...]:
    chance = Chance(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        opening, continuation, positive = review(chance)
        meta = {"label": "positive" if positive else "negative"}
        samples.setdefault(opening, Sample(opening, f"Review: {opening}", (continuation,), meta))
    return tuple(samples.values())


def _openings(row: Row) -> Iterator[Row]:
    """The first half of a review, at most ``OPENING_WORDS`` words of it; the rest is the reference."""
    words = row["text"].replace("<br />", " ").split()
    n = min(OPENING_WORDS, len(words) // 2)
    if n:
        label = {0: "negative", 1: "positive"}[int(row["label"])]
        yield {"prompt": "Review: " + " ".join(words[:n]), "references": " ".join(words[n:]), "label": label}


class SentimentContinuation(BuiltinTask):
    """Goes on with a review's opening; the default reward is the probability that the continuation is favourable.

    The demonstrations go on as reviewers do, half of them favourably.

    Args:
        data: Openings of one's own, see :class:`~textgym.data.BuiltinTask`.
        columns: Which column is which, or the name of a layout.
    """

    stop = ("\n",)
    max_new_tokens = 48
    recipe = MappingProxyType({**COMMON, "total_timesteps": 25_000})
    headline_metrics = ("positive", "distinct_2", "length")
    layouts = MappingProxyType(
        {
            "imdb": Layout("stanfordnlp/imdb", rows=_openings),
            "sentence_polarity": Layout("cornell-movie-review-data/rotten_tomatoes", rows=_openings),
        }
    )

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """Openings, each with a continuation."""
        return _reviews()

    @cached_property
    def reward(self) -> Reward:  # type: ignore[override]  # made when it is asked for: it holds a model
        """The classifier's probability of ``positive``, of the continuation alone."""
        positive = RewardModel(
            SENTIMENT_MODEL,
            load_tokenizer(None),
            template=lambda _, response: response.strip() or NOTHING,
            label="positive",
            activation="probability",
            truncate=True,
        )
        positive.name = "positive"
        return positive

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The share that the default reward finds favourable, if that is the reward; distinct pairs of words; words."""
        judged = [e.reward_parts["positive"] > 0.5 for e in episodes if "positive" in e.reward_parts]
        favourable = {"positive": fmean(judged)} if judged else {}
        return favourable | mean_scores(episodes, METRICS)
