"""Preference data: replies to a prompt, ranked or rated; read from files as samples are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from textgym.data import Columns, Layout, Source, load_samples
from textgym.episode import Episode, Sample, Turn
from textgym.errors import DataError
from textgym.hashing import hashed_id

__all__ = ["LAYOUTS", "Preference", "load_preferences"]


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


def _taskmaster_rows(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A reply in words of a dialogue that has begun; calls of an interface are none."""
    said = row["generation"].get("text")
    roles = {"agent": "assistant", "user": "user"}
    context = [{"role": roles[turn["role"]], "content": turn["text"]} for turn in row["context"] if "text" in turn]
    if not said or not context:
        return []
    return [{"id": row["id"], "prompt": context, "response": said, "rating": row["reward"]}]


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
