"""Classification: the agent names the class of a text in words.

The built-in data are reviews of one or two sentences, made by a small grammar: they say one thing or several, deny
things, contradict themselves, and come to a verdict against what they said. The reference is what a careful reader
makes of a review; the demonstrations are what hurried annotators did, see :class:`Classification`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from textgym.data import BuiltinTask, Columns, Layout, Row, Source
from textgym.envs.invention import Chance, capitalised, prompted
from textgym.envs.recipe import COMMON
from textgym.episode import Episode, Sample
from textgym.rewards import ExactMatch
from textgym.rewards.abstain import normalize_answer

__all__ = ["Classification", "builtin_reviews", "class_scores"]

SENTIMENTS = ("negative", "positive")
NEWS_TOPICS = ("world", "sports", "business", "science and technology")
UNLABELLED = -1  # in the hub's test splits whose labels are kept secret

N_REVIEWS = 5000
SEED = (2026, 3, 1)
KINDS = ("plain", "plain", "agreeing", "agreeing", "denying", "contradictory", "overridden")
DENYING_SHARE = 0.2  # of the statements in contradictory and overridden reviews
ANNOTATORS = ("careful",) * 9 + ("hasty",) * 8 + ("hedging",) * 3
SLIPS = 0.04
HEDGES = ("hard to say", "not sure", "could be either", "somewhere in between")
NAMES = {1: "positive", -1: "negative", 0: "mixed"}

_normalised = lru_cache(maxsize=4096)(normalize_answer)  # intervals of metrics need them on a thousand resamples


def class_scores(true: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Precision, recall and F1, each averaged over the classes.

    That is the macro average of scikit-learn's ``precision_recall_fscore_support`` with ``zero_division=0``: the
    classes are those that are true or predicted of anything, and what would be a division by zero is 0.

    Args:
        true: The class of each text; not empty.
        predicted: The class that each was given, None where it was none.
    """
    scores = []
    for name in sorted({*true, *(name for name in predicted if name is not None)}):
        right = sum(a == b == name for a, b in zip(true, predicted, strict=True))
        said, there = predicted.count(name), true.count(name)
        scores.append((right / max(said, 1), right / max(there, 1), 2 * right / (said + there)))
    precision, recall, f1 = map(fmean, zip(*scores, strict=True))
    return {"macro_precision": precision, "macro_recall": recall, "macro_f1": f1}


def _review_prompt(text: str, classes: str = "positive or negative") -> str:
    return f"Review: {text}\nSentiment ({classes}):"


def _labelled(row: Row, text: str, classes: Sequence[str]) -> Iterator[Row]:
    """The row with its text on one line and its class in words, empty where it is unlabelled."""
    label = int(row["label"])
    if not UNLABELLED <= label < len(classes):
        raise ValueError(f"its label is {label}, and there are 0 to {len(classes) - 1}")
    line = " ".join(row[text].replace("<br />", " ").split())
    yield {"text": line, "class": "" if label == UNLABELLED else classes[label]}


def _layout(dataset: str, prompt: str, classes: Sequence[str], text: str = "text") -> Layout:
    columns = {"prompt": prompt, "references": "class"}
    return Layout(dataset, columns=columns, rows=partial(_labelled, text=text, classes=classes))


class Classification(BuiltinTask):
    """Texts whose class the agent names in words; by default reviews that are positive, negative or mixed.

    The classes are the first references of the data. Data of one's own bring the whole prompt, which had better name
    them: ``columns={"prompt": "Mail: {body}\\nFolder (work or private):", "references": "folder"}``.

    The built-in demonstrations are what hurried annotators wrote. A review that seems at its first words what it is on
    the whole got its class, but for a slip now and then. Of the others a careful annotator, nine times of twenty, wrote
    the class; a hasty one, eight times, what the first words seem to say, whatever is denied of them; and another one
    that it is hard to say.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`; the layouts are ``"sentence_polarity"``, ``"imdb"``, ``"sst2"``
            and ``"ag_news"``.
        columns: See :class:`~textgym.data.BuiltinTask`.
    """

    reward = ExactMatch()
    stop = ("\n",)
    max_new_tokens = 12
    recipe = MappingProxyType({**COMMON, "total_timesteps": 25_000, "ppo.n_episodes": 512, "ppo.batch_size": 512})
    headline_metrics = ("accuracy", "macro_f1", "no_class_rate")
    layouts = MappingProxyType(
        {
            "sentence_polarity": _layout(
                "cornell-movie-review-data/rotten_tomatoes", _review_prompt("{text}"), SENTIMENTS
            ),
            "imdb": _layout("stanfordnlp/imdb", _review_prompt("{text}"), SENTIMENTS),
            "sst2": _layout("stanfordnlp/sst2", _review_prompt("{text}"), SENTIMENTS, text="sentence"),
            "ag_news": _layout("fancyzhx/ag_news", f"News: {{text}}\nTopic ({', '.join(NEWS_TOPICS)}):", NEWS_TOPICS),
        }
    )

    def __init__(self, data: Source | None = None, columns: Columns | str | None = None) -> None:
        super().__init__(data, columns)
        self.classes = frozenset(_normalised(s.references[0]) for s in self.samples("all") if s.references)

    @classmethod
    def builtin(cls) -> tuple[Sample, ...]:
        """The built-in reviews."""
        return builtin_reviews()

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Accuracy; precision, recall and F1 over classes (:func:`class_scores`); the share of replies of no class.

        Samples without references are left out.
        """
        labelled = [episode for episode in episodes if episode.sample.references]
        if not labelled:
            return {}
        true = [_normalised(episode.sample.references[0]) for episode in labelled]
        predicted = [self._predicted(episode) for episode in labelled]
        return {
            "accuracy": fmean(a == b for a, b in zip(true, predicted, strict=True)),
            **class_scores(true, predicted),
            "no_class_rate": predicted.count(None) / len(predicted),
        }

    def _predicted(self, episode: Episode) -> str | None:
        said, references = _normalised(episode.response), episode.sample.references
        if any(said == _normalised(reference) for reference in references):
            return _normalised(references[0])
        return said if said in self.classes else None


# ------------------------------------------------------------------------------------------------ the built-in reviews


class Phrase(NamedTuple):
    """A clause without capital and full stop; 1 is praise and -1 blame."""

    text: str
    means: int
    seems: int  # by its words, whatever is denied of them


class Review(NamedTuple):
    """A text without capital and full stop; 1 is praise, -1 blame and 0 both."""

    text: str
    means: int
    seems: int  # by its first words


@cache
def builtin_reviews() -> tuple[Sample, ...]:
    """5,000 different reviews; ``meta`` has the kind of each, and the demonstration."""
    chance = Chance(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_REVIEWS:
        kind = chance.one_of(KINDS)
        review = _review(chance, kind, chance.one_of(_vocabulary()["subjects"]))
        prompt = _review_prompt(f"{capitalised(review.text)}.", "positive, negative or mixed")
        annotation = _annotation(chance, review)
        sample = prompted(prompt, [NAMES[review.means]], kind=kind, demonstration=annotation)
        samples.setdefault(sample.id, sample)
    return tuple(samples.values())


@cache
def _vocabulary() -> dict[str, Any]:
    path = Path(__file__).parent / "data" / "classification" / "reviews.json"
    vocabulary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return vocabulary


def _review(chance: Chance, kind: str, subject: Mapping[str, Any]) -> Review:
    sense = chance.one_of((1, -1))
    aspect, another = chance.some_of(subject["aspects"], 2)
    if kind == "plain":
        return Review(*_statement(chance, subject, aspect, sense))
    if kind == "denying":
        return Review(*_statement(chance, subject, aspect, sense, denying_share=1))
    verdict = _verdict(chance, subject, sense)
    if kind == "agreeing":
        second = chance.one_of((verdict, _statement(chance, subject, another, sense)))
        return _joined(chance, kind, _statement(chance, subject, aspect, sense), second, sense)
    first = _statement(chance, subject, aspect, -sense, DENYING_SHARE)
    if kind == "overridden":
        return _joined(chance, kind, first, verdict, sense)
    return _joined(chance, kind, first, _statement(chance, subject, another, sense, DENYING_SHARE), 0)


def _statement(chance: Chance, subject: Mapping[str, Any], aspect: str, means: int, denying_share: float = 0) -> Phrase:
    vocabulary = _vocabulary()
    denies = chance.happens(denying_share)
    seems = -means if denies else means
    quality = "good" if seems > 0 else "bad"
    word = chance.one_of(vocabulary[quality] + 2 * subject[quality])
    form = chance.one_of(vocabulary["denials" if denies else "statements"])
    degree = chance.one_of(vocabulary["degrees"])
    return Phrase(form.format(aspect=aspect, word=word, degree=degree), means, seems)


def _verdict(chance: Chance, subject: Mapping[str, Any], sense: int) -> Phrase:
    return Phrase(chance.one_of(subject["liked" if sense > 0 else "disliked"]), sense, sense)


def _joined(chance: Chance, kind: str, one: Phrase, other: Phrase, means: int) -> Review:
    form = chance.one_of(_vocabulary()[kind])
    first = one if form.index("{0}") < form.index("{1}") else other
    return Review(form.format(one.text, other.text), means, first.seems)


def _annotation(chance: Chance, review: Review) -> str:
    if review.means == review.seems:
        slips = chance.happens(SLIPS)
        return chance.one_of([name for sense, name in NAMES.items() if (sense != review.means) == slips])
    annotator = chance.one_of(ANNOTATORS)
    if annotator == "hedging":
        return chance.one_of(HEDGES)
    return NAMES[review.means if annotator == "careful" else review.seems]
