"""Preference data: replies to a prompt, ranked or rated; read from files as samples are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from textgym.comparison import clustered_mean
from textgym.data import Columns, Layout, Source, load_samples, split_of
from textgym.episode import Episode, Sample, Turn
from textgym.errors import DataError
from textgym.evaluation import CONFIDENCE, RESAMPLES, Estimate
from textgym.hashing import hashed_id
from textgym.rewards import Reward, Score

__all__ = ["LAYOUTS", "Preference", "load_preferences", "paired", "preference_accuracy"]


@dataclass(frozen=True)
class Preference:
    """Replies to one prompt: several in order of preference, or one with a rating.

    Args:
        sample: What was asked.
        replies: The best first; a single one where there is a rating.
        rating: Of a single reply, the higher the better; None where there are several.
    """

    sample: Sample
    replies: tuple[str, ...]
    rating: float | None = None

    def episodes(self) -> list[Episode]:
        """An episode that ended with each of the replies."""
        return [Episode(self.sample, [Turn("assistant", reply)], "eos") for reply in self.replies]


def load_preferences(source: Source, columns: Columns | Layout | str | None = None) -> dict[str, list[Preference]]:
    """The preferences of a file, of rows or of a data set by split, see :func:`textgym.load_samples`.

    A row has a ``prompt`` and one of: ``chosen`` and ``rejected`` (a pair); ``response`` and ``rating``; ``responses``,
    a list with the best first (a ranking); ``original`` and ``edited`` (the edited text is preferred).

    Args:
        source: As for :func:`textgym.load_samples`.
        columns: Which column is which, ``{"chosen": "better", "rejected": "worse"}``; or the name of one of
            ``LAYOUTS``.

    Raises:
        DataError: The source is missing, empty or malformed, or a row has none of these or a value of the wrong kind.
    """
    if isinstance(columns, str):
        if columns not in LAYOUTS:
            raise DataError(f"there is no layout {columns!r} of preferences; there are {', '.join(LAYOUTS)}.")
        columns = LAYOUTS[columns]
    return {split: [_preference(s) for s in samples] for split, samples in load_samples(source, columns).items()}


def _preference(sample: Sample) -> Preference:
    meta = sample.meta
    if "chosen" in meta and "rejected" in meta:
        return Preference(sample, _texts(sample, meta["chosen"], meta["rejected"]))
    if "edited" in meta and "original" in meta:
        return Preference(sample, _texts(sample, meta["edited"], meta["original"]))
    if "response" in meta and "rating" in meta:
        return Preference(sample, _texts(sample, meta["response"]), _number(sample, meta["rating"]))
    if isinstance(meta.get("responses"), (list, tuple)) and len(meta["responses"]) > 1:
        return Preference(sample, _texts(sample, *meta["responses"]))
    raise DataError(
        f"sample {sample.id!r} has neither chosen and rejected, response and rating, a list of responses, nor original "
        f"and edited; it has {', '.join(meta) or 'nothing'} beside the prompt. Say which column is which: columns=..."
    )


def _texts(sample: Sample, *values: Any) -> tuple[str, ...]:
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise DataError(f"sample {sample.id!r}: a reply is a text, not {wrong[0]!r}.")
    return values


def _number(sample: Sample, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise DataError(f"sample {sample.id!r}: a rating is a number, not {value!r}.")
    return number


def paired(preferences: Sequence[Preference], *, seed: int = 0) -> list[Preference]:
    """Pairs of ratings, for what learns from pairs: of two replies to the same prompt the one that is rated higher.

    Of the replies to a prompt, in order of rating, the lower half are put beside the upper half; which of those that
    are rated alike go together is drawn. So each reply is in one pair at most, the pairs are as many as there can be
    then, and prompts whose replies are all rated alike have none. Rankings are passed on as they are.

    Args:
        preferences: Ratings or rankings.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Preference]] = {}
    for preference in preferences:
        if preference.rating is not None:
            groups.setdefault(json.dumps(preference.sample.messages), []).append(preference)
    pairs = [preference for preference in preferences if preference.rating is None]
    for group in groups.values():
        order = sorted(rng.permutation(len(group)).tolist(), key=lambda i: group[i].rating)
        half = len(group) // 2
        for lower, upper in zip(order[:half], order[len(group) - half :], strict=True):
            worse, better = group[lower], group[upper]
            if worse.rating != better.rating:
                pairs.append(Preference(better.sample, better.replies + worse.replies))
    return pairs


def preference_accuracy(reward: Reward, preferences: Sequence[Preference], *, seed: int = 0) -> Estimate:
    """The share of pairs of replies of which a reward prefers the right one; chance is a half, as is a tie.

    Of rankings, these are the neighbouring pairs, and the 95% interval is clustered by sample. Of ratings, they are all
    pairs of replies that are rated differently, whatever the prompts (for ratings of 0 and 1 the area under the ROC
    curve), and replies are resampled; of replies to the same prompt, it is that of :func:`paired`.

    Args:
        reward: Any, such as that of :class:`~textgym.agents.RewardModelTrainer`.
        preferences: Rankings, or ratings; those that it was not trained on.
        seed: Of the resampling.

    Raises:
        DataError: There are no pairs, the preferences are of both kinds, or a reply cannot be scored.
    """
    scores = _scores(reward, preferences)
    ratings = [preference.rating for preference in preferences if preference.rating is not None]
    if len(ratings) not in (0, len(preferences)):
        raise DataError(f"{len(ratings)} of {len(preferences)} preferences are ratings, the others rankings.")
    if ratings:
        return _concordance(np.array([score for (score,) in scores]), np.array(ratings), seed)
    margins = [better - worse for row in scores for better, worse in pairwise(row)]
    clusters = [row for row, of_row in enumerate(scores) for _ in of_row[1:]]
    if not margins:
        raise DataError("there are no pairs of replies of which one is preferred.")
    return clustered_mean([float(np.heaviside(margin, 0.5)) for margin in margins], clusters, seed=seed)


def _scores(reward: Reward, preferences: Sequence[Preference]) -> list[list[float]]:
    """Of each preference's replies."""
    found = iter(reward.score([episode for preference in preferences for episode in preference.episodes()]))
    return [[_value(preference, next(found)) for _ in preference.replies] for preference in preferences]


def _value(preference: Preference, score: Score) -> float:
    if score.value is None or not np.isfinite(score.value):
        raise DataError(f"sample {preference.sample.id!r} could not be scored: {score.status}")
    return score.value


def _concordance(scores: np.ndarray, ratings: np.ndarray, seed: int) -> Estimate:
    """Of (n,) scores with (n,) ratings; resampled, a pair counts as often as both its replies are drawn."""
    differ = (ratings[:, None] > ratings).astype(np.float32)  # (n, n)
    if not differ.any():
        raise DataError("there are no pairs of replies of which one is preferred: all ratings are alike.")
    right = differ * np.heaviside(scores[:, None] - scores, 0.5).astype(np.float32)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=RESAMPLES).astype(np.float32)
    n_right, n_pairs = (((drawn @ pairs) * drawn).sum(1) for pairs in (right, differ))
    shares = n_right[n_pairs > 0] / n_pairs[n_pairs > 0]
    low, high = np.quantile(shares, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    value = float(right.sum() / differ.sum())
    return {"value": value, "low": float(low), "high": float(high), "n": len(scores)}


def _taskmaster_rows(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A reply in words or a call of the interface, as JSON, in a dialogue that has begun; divided by the dialogue."""
    context = [{"role": TASKMASTER_ROLES[turn["role"]], "content": _words(turn)} for turn in row["context"]]
    if not context:
        return []
    split = split_of(json.dumps(context))
    said = f" {_words(row['generation'])}"
    return [{"id": row["id"], "prompt": context, "response": said, "rating": row["reward"], "split": split}]


def _words(turn: Mapping[str, Any]) -> str:
    """What was said, to the interface or by it where it was not in words."""
    return turn["text"].strip() if "text" in turn else json.dumps(turn["api"] if "api" in turn else turn["response"])


TASKMASTER_ROLES = MappingProxyType({"agent": "assistant", "user": "user", "api": "system"})


def _polarity_rows(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    text = row["text"].strip()  # whose hash divides them, since the prompt is always the same
    return [{"id": hashed_id(text), "prompt": "A review:", "response": f" {text}", "rating": row["label"]}]


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "taskmaster": Layout("google-research-datasets/taskmaster", rows=_taskmaster_rows),
        "sentence_polarity": Layout("cornell-movie-review-data/rotten_tomatoes", rows=_polarity_rows),
    }
)
"""Layouts of public preference data by name."""
