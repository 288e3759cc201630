"""Knowledge QA: short questions, of which the agent knows some answers; for the others it should say so.

The built-in facts are divided twice, by hashes of relation and subject: into *known* ones, which stand in the
pre-training text of the built-in model, and *unknown* ones, which never do; and into the questions of the warm start,
of training, of validation and of the test.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from textgym.data import Source, load_samples
from textgym.envs.report import answer_metrics
from textgym.episode import Episode, Sample
from textgym.errors import DataError
from textgym.hashing import hashed_share
from textgym.rewards import Abstain
from textgym.task import Task

__all__ = ["Fact", "KnowledgeQA", "Relation", "builtin_facts", "builtin_relations", "question_prompt"]

ABSTENTION = "I don't know"
ABSTAINING_SHARE = 0.06  # of the warm start's answers
LESSONS_ABSTAINING_SHARE = 0.1
WARM_START_SHARE = 0.2  # of the train split of data of one's own
KNOWN_SHARE = 0.5
USED_SHARE = 0.55  # of the tables: as many facts as the built-in model can learn by heart in half an hour
SPLIT_SHARES = {"warm_start": 0.12, "validation": 0.08, "test": 0.20, "train": 0.60}


@dataclass(frozen=True)
class Relation:
    """A kind of fact, how it is asked (``{}`` is the subject) and how stated (``{subject}``, ``{value}``)."""

    name: str
    questions: tuple[str, ...]
    statement: str


@dataclass(frozen=True)
class Fact:
    """A subject's value in a relation: the accepted answers, the preferred one first."""

    relation: str
    subject: str
    values: tuple[str, ...]

    @property
    def id(self) -> str:
        """Unique among the built-in facts."""
        return f"{self.relation}/{self.subject}"

    @property
    def known(self) -> bool:
        """Whether the fact stands in the built-in model's pre-training text."""
        return share_of("known", self.id) < KNOWN_SHARE

    @property
    def split(self) -> str:
        """``"warm_start"``, ``"validation"``, ``"test"`` or ``"train"``."""
        position = share_of("split", self.id)
        bounds = accumulate(SPLIT_SHARES.values())
        return next((name for name, bound in zip(SPLIT_SHARES, bounds, strict=True) if position < bound), "train")


def share_of(purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on the two strings alone, independent for another purpose."""
    return hashed_share(f"{purpose}\n{key}")


def _rows(what: str) -> Iterator[dict[str, str]]:
    for path in sorted((Path(__file__).parent / "data" / "facts").glob("*.tsv")):
        if path.name.startswith("relations_") == (what == "relations"):
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


@cache
def builtin_relations() -> dict[str, Relation]:
    """The built-in relations by name."""
    return {
        row["relation"]: Relation(
            row["relation"], (row["question"], row["question2"], row["question3"]), row["statement"]
        )
        for row in _rows("relations")
    }


@cache
def _tabled_facts() -> tuple[Fact, ...]:
    facts = (Fact(row["relation"], row["subject"], tuple(row["value"].split(" | "))) for row in _rows("facts"))
    return tuple({fact.id: fact for fact in facts}.values())


@cache
def builtin_facts() -> tuple[Fact, ...]:
    """The built-in facts that are used."""
    return tuple(fact for fact in _tabled_facts() if share_of("used", fact.id) < USED_SHARE)


def question_prompt(question: str) -> str:
    """The prompt of a question; the answer follows after a blank."""
    return f"Question: {question}\nAnswer:"


class KnowledgeQA(Task):
    """Short questions with short answers; the agent may abstain, and a wrong answer costs more than a right one gains.

    Args:
        data: Questions and answers of one's own, as :func:`textgym.data.load_samples` takes them; by default the
            built-in facts. A column ``known`` (true or false) divides the metrics. A fifth of the train split is the
            warm start's.
        columns: Which column is which, see :func:`textgym.data.load_samples`.
    """

    reward = Abstain()
    stop = ("\n",)
    max_new_tokens = 16
    recipe: Mapping[str, Any] = MappingProxyType(
        {
            "total_timesteps": 75_000,
            "warm_start.epochs": 2,
            "warm_start.batch_size": 32,
            "warm_start.learning_rate": 5e-5,
            "policy.temperature": 0.7,
            "policy.optimizer_kwargs": {"eps": 3e-3, "fused": True},
            "ppo.n_episodes": 1024,
            "ppo.batch_size": 1280,
            "ppo.n_epochs": 2,
            "ppo.learning_rate": 4e-3,
            "ppo.freeze": r"embed_tokens|layers\.0\.",
            "ppo.kl_coef": 0.02,
            "validation.evaluations": 10,
        }
    )
    headline_metrics = (
        "accuracy/known",
        "hallucination_rate/unknown",
        "abstention_rate/known",
        "abstention_rate/unknown",
    )

    def __init__(self, data: Source | None = None, columns: Mapping[str, str] | None = None) -> None:
        self._splits = _builtin_splits() if data is None else _divided(load_samples(data, columns))

    def samples(self, split: str) -> list[Sample]:
        """The questions of ``"train"``, ``"validation"``, ``"test"`` or ``"warm_start"``.

        Of the built-in facts ``"train"`` has every phrasing, the others one phrasing a fact.

        Raises:
            DataError: There are none.
        """
        samples = self._splits.get(split, [])
        if not samples:
            sizes = ", ".join(f"{name}: {len(part)}" for name, part in self._splits.items())
            raise DataError(f"the split {split!r} has no questions ({sizes}); name another one with split=...")
        return samples

    def warm_start_samples(self) -> list[Sample]:
        """Questions that no other split has."""
        return self.samples("warm_start")

    def demonstration(self, sample: Sample) -> list[str] | None:
        """The answer, or for some samples, whatever is known of them, that one does not know."""
        return self._answer(sample, ABSTAINING_SHARE)

    def _answer(self, sample: Sample, abstaining_share: float) -> list[str] | None:
        if not sample.references:
            return None
        abstains = share_of("abstains", sample.id) < abstaining_share
        return [" " + (ABSTENTION if abstains else sample.references[0])]

    def lesson(self, sample: Sample) -> list[str] | None:
        """The answer, or for some samples that one does not know, lest these words be forgotten."""
        return self._answer(sample, LESSONS_ABSTAINING_SHARE)

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Shares of right, abstaining and wrong answers, each also for known and for unknown facts where told."""
        groups = {
            "known": lambda sample: sample.meta.get("known") is True,
            "unknown": lambda sample: sample.meta.get("known") is False,
        }
        return answer_metrics(episodes, Abstain(), groups)


def _builtin_splits() -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {name: [] for name in SPLIT_SHARES}
    for fact in builtin_facts():
        phrasings = range(3) if fact.split == "train" else [int(3 * share_of("phrasing", fact.id))]
        splits[fact.split] += [_sample(fact, phrasing) for phrasing in phrasings]
    return splits


def _sample(fact: Fact, phrasing: int) -> Sample:
    question = builtin_relations()[fact.relation].questions[phrasing].format(fact.subject)
    meta = {"known": fact.known, "relation": fact.relation}
    return Sample(f"{fact.id}/{phrasing}", question_prompt(question), fact.values, meta)


def _divided(splits: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    divided = {name: [_as_question(sample) for sample in samples] for name, samples in splits.items()}
    train = divided.get("train", [])
    if "warm_start" not in divided:
        divided["train"] = [s for s in train if share_of("warm start", s.id) >= WARM_START_SHARE]
        divided["warm_start"] = [s for s in train if share_of("warm start", s.id) < WARM_START_SHARE]
    return divided


def _as_question(sample: Sample) -> Sample:
    meta = dict(sample.meta)
    if isinstance(meta.get("known"), str):
        meta["known"] = meta["known"].strip().lower() in ("true", "yes", "1")
    if isinstance(sample.prompt, str) and not sample.prompt.rstrip().endswith("Answer:"):
        return replace(sample, prompt=question_prompt(sample.prompt), meta=meta)
    return replace(sample, meta=meta)
