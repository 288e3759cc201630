"""Right, wrong, or 'I don't know': the reward that makes abstaining pay where the model does not know."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from textgym.episode import Episode, Sample
from textgym.rewards.core import Reward, Score

__all__ = ["ABSTENTIONS", "Abstain", "exact_match", "normalize_answer", "token_f1"]

ABSTENTIONS: tuple[str, ...] = (
    "I don't know",
    "I do not know",
    "I'm not sure",
    "I am not sure",
    "I have no idea",
    "unknown",
    "unanswerable",
    "not answerable",
    "cannot answer",
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "’‘“”")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks, as SQuAD's evaluation does.

    Source: https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(response: str, references: Sequence[str]) -> bool:
    """Whether the normalised response equals one of the normalised references."""
    return normalize_answer(response) in {normalize_answer(reference) for reference in references}


def token_f1(response: str, references: Sequence[str]) -> float:
    """The best F1 of the response's normalised words against a reference's, in [0, 1] (SQuAD, section 6.1)."""
    return max((_f1(normalize_answer(response).split(), normalize_answer(r).split()) for r in references), default=0.0)


def _f1(response: list[str], reference: list[str]) -> float:
    if not response or not reference:
        return float(response == reference)
    common = sum((Counter(response) & Counter(reference)).values())
    return 2 * common / (len(response) + len(reference))


class Abstain(Reward):
    """``correct`` for a right answer, ``abstain`` for an abstention, ``wrong`` for anything else.

    Answering pays where the chance of being right is above ``(abstain - wrong) / (correct - wrong)``: 0.6 by default.
    A sample that has an abstaining phrase among its references has no answer: to abstain, in whatever words, is right.

    Args:
        correct: The reward of an answer that matches a reference after SQuAD's normalisation.
        abstain: The reward of one of the abstaining phrases where there is an answer.
        wrong: The reward of every other reply, an empty one included.
        phrases: What counts as abstaining, compared after normalisation.
        partial_credit: Whether an answer that shares words with the right one earns, for its token F1, so much of the
            way from ``wrong`` to ``correct``.
    """

    def __init__(
        self,
        correct: float = 1.0,
        abstain: float = 0.0,
        wrong: float = -1.5,
        phrases: Sequence[str] = ABSTENTIONS,
        partial_credit: bool = False,
    ) -> None:
        self.correct, self.abstain, self.wrong = correct, abstain, wrong
        self.phrases = frozenset(normalize_answer(phrase) for phrase in phrases)
        self.partial_credit = partial_credit

    def abstains(self, reply: str) -> bool:
        """Whether a reply is one of the abstaining phrases."""
        return normalize_answer(reply) in self.phrases

    def has_answer(self, sample: Sample) -> bool:
        """Whether none of a sample's references is an abstaining phrase."""
        return not any(map(self.abstains, sample.references))

    def outcome(self, episode: Episode) -> str:
        """``"correct"``, ``"abstain"`` or ``"wrong"``."""
        if exact_match(episode.response, episode.sample.references):
            return "correct"
        if self.abstains(episode.response):
            return "abstain" if self.has_answer(episode.sample) else "correct"
        return "wrong"

    def f1(self, episode: Episode) -> float:
        """The reply's token F1, as SQuAD 2.0 has it: where there is no answer, 1 for an abstention, else 0."""
        if not self.has_answer(episode.sample):
            return float(self.outcome(episode) == "correct")
        return token_f1(episode.response, episode.sample.references)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The value of each episode's outcome."""
        return [Score(self._value(episode)) for episode in episodes]

    def _value(self, episode: Episode) -> float:
        outcome = self.outcome(episode)
        if outcome == "wrong" and self.partial_credit:
            return self.wrong + (self.correct - self.wrong) * self.f1(episode)
        return {"correct": self.correct, "abstain": self.abstain, "wrong": self.wrong}[outcome]
