"""Rewards that compare words: with the references, with what was asked for, or with the reply itself.

All of them look at the agent's last turn without the blanks around it. One that compares with references cannot score
an episode whose sample has none: its score then has no value, and a status that says so.

A *word* is a run of letters, digits and underscores, with apostrophes and hyphens inside ("don't", "well-known"), in
lower case; ROUGE, BLEU, chrF and METEOR have tokens of their own.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal, get_args

from textgym.episode import Episode, Sample
from textgym.errors import RewardError
from textgym.rewards.abstain import exact_match, token_f1
from textgym.rewards.core import Reward, Score

__all__ = [
    "Bleu",
    "ChrF",
    "Contains",
    "DistinctN",
    "ExactMatch",
    "Length",
    "Matches",
    "Meteor",
    "Repetition",
    "Rouge",
    "TokenF1",
]

RougeVariant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
LengthUnit = Literal["words", "characters"]

CACHED_TEXTS = 4096  # tokenised by ROUGE, where the same references come up in every rollout
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise RewardError(f"this reward needs {module.split('.')[0]}, which belongs to textgym: install it.") from error


class _ReplyReward(Reward):
    """Scores each reply by itself."""

    @abstractmethod
    def value(self, reply: str) -> float: ...

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The value of each stripped reply."""
        return [Score(self.value(episode.response.strip())) for episode in episodes]


class _ReferenceReward(Reward):
    """Compares each reply with those references that the metric can read."""

    needs = "a reference that is not blank"

    def reads(self, reference: str) -> bool:
        return bool(reference.strip())

    @abstractmethod
    def similarity(self, reply: str, references: Sequence[str]) -> float: ...

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The similarity of each stripped reply to its references; no value where there are none."""
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> Score:
        given = episode.sample.references
        references = [reference for reference in given if self.reads(reference)]
        if not references:
            return Score(None, status=f"{self.name}: needs {self.needs}; sample {episode.sample.id!r} has {given!r}")
        return Score(self.similarity(episode.response.strip(), references))


class Rouge(_ReferenceReward):
    """ROUGE F-measure of the reply, the best over the references, in [0, 1] (Lin, "ROUGE", 2004; by rouge-score).

    rouge-score reads Latin letters without accents and digits only, in lower case. References in another script cannot
    be compared with, so such a sample is not scored. An empty reply scores 0, as does a reply or reference of one word
    under ``"rouge2"``.

    Args:
        variant: ``"rouge1"`` and ``"rouge2"`` compare words and pairs of words; ``"rougeL"`` the longest common
            subsequence; ``"rougeLsum"`` that of lines, which are to be sentences.
        use_stemmer: Compare Porter stems, so that "cats" matches "cat".

    Raises:
        RewardError: There is no such variant, or rouge-score is not installed.
    """

    needs = "a reference with a Latin letter or a digit, all that rouge-score reads"

    def __init__(self, variant: RougeVariant = "rougeL", use_stemmer: bool = False) -> None:
        if variant not in get_args(RougeVariant):
            raise RewardError(f"there is no ROUGE variant {variant!r}; choose {', '.join(get_args(RougeVariant))}.")
        self.variant, self.use_stemmer = variant, use_stemmer
        self.name = variant + "_stemmed" * use_stemmer
        _rouge_scorer(variant, use_stemmer)  # a missing package shows here, not in every score

    def reads(self, reference: str) -> bool:
        """Whether rouge-score finds a token in it."""
        return bool(re.search("[a-z0-9]", reference.lower()))

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """The best F-measure."""
        scores = _rouge_scorer(self.variant, self.use_stemmer).score_multi(references, reply)
        return float(scores[self.variant].fmeasure)


@cache
def _rouge_scorer(variant: str, use_stemmer: bool) -> Any:
    tokenizer = _import("rouge_score.tokenizers").DefaultTokenizer(use_stemmer)
    remembering = SimpleNamespace(tokenize=lru_cache(CACHED_TEXTS)(tokenizer.tokenize))
    return _import("rouge_score.rouge_scorer").RougeScorer([variant], tokenizer=remembering)


class Bleu(_ReferenceReward):
    """Sentence BLEU of the reply against all references at once, in [0, 1] (Papineni et al., 2002; by sacrebleu).

    sacrebleu's defaults for sentences: case counts, mteval-13a tokens, exponential smoothing (Chen and Cherry, 2014,
    method 3), and only the orders of n-grams that the reply is long enough for. An empty reply scores 0, as does one
    without a word of the references. For languages written without blanks take :class:`ChrF`.

    Raises:
        RewardError: sacrebleu is not installed.
    """

    def __init__(self) -> None:
        _bleu()

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """sacrebleu's score, which is in percent and can exceed 100 by a rounding error, as a share."""
        return min(1.0, _bleu().sentence_score(reply, references).score / 100)


@cache
def _bleu() -> Any:
    return _import("sacrebleu.metrics").BLEU(effective_order=True)


class ChrF(_ReferenceReward):
    """Character n-gram F-score of the reply, the best over the references, in [0, 1] (Popović, 2015; by sacrebleu).

    n-grams of 1 to 6 characters, without blanks; case counts; recall counts twice as much as precision. Only the orders
    that reply and reference are long enough for count. An empty reply scores 0.

    Args:
        word_order: 0 is chrF; 1 adds single words (chrF+), 2 also pairs of words (chrF++; Popović, 2017).

    Raises:
        RewardError: ``word_order`` is another number, or sacrebleu is not installed.
    """

    def __init__(self, word_order: int = 0) -> None:
        if word_order not in (0, 1, 2):
            raise RewardError(f"word_order is 0 (chrF), 1 (chrF+) or 2 (chrF++), not {word_order!r}.")
        self.word_order = word_order
        self.name = "chrF" + "+" * word_order
        _chrf(word_order)

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """sacrebleu's score, which is in percent and can exceed 100 by a rounding error, as a share."""
        return min(1.0, _chrf(self.word_order).sentence_score(reply, references).score / 100)


@cache
def _chrf(word_order: int) -> Any:
    return _import("sacrebleu.metrics").CHRF(word_order=word_order)


class Meteor(_ReferenceReward):
    """METEOR of the reply without synonyms, the best over the references, in [0, 1] (by nltk).

    Words match exactly or by their Porter stems; the module of synonyms is left out, since WordNet is a download. With
    nltk's defaults (alpha 0.9, beta 3, gamma 0.5; Lavie and Agarwal, 2007). Case does not count; punctuation marks are
    words. The penalty for fragments keeps even a perfect reply of m words at 1 - 0.5 / m³. An empty reply scores 0.

    Raises:
        RewardError: nltk is not installed.
    """

    def __init__(self) -> None:
        _import("nltk.translate.meteor_score")

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """The best METEOR."""
        tokenize = _import("nltk.tokenize").wordpunct_tokenize
        meteor_score = _import("nltk.translate.meteor_score").meteor_score
        return float(meteor_score([tokenize(text) for text in references], tokenize(reply), wordnet=_NoSynonyms))


class _NoSynonyms:
    """What nltk's METEOR asks of WordNet, answered without it."""

    @staticmethod
    def synsets(word: str) -> tuple[()]:
        return ()


class ExactMatch(_ReferenceReward):
    """1 where the reply equals a reference after SQuAD's normalisation, else 0.

    An empty reply matches an empty reference. See :func:`textgym.rewards.abstain.exact_match`.
    """

    needs = "a reference"

    def reads(self, reference: str) -> bool:
        """Also a blank one: the answer to an unanswerable question, in SQuAD 2.0."""
        return True

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """1.0 or 0.0."""
        return float(exact_match(reply, references))


class TokenF1(ExactMatch):
    """F1 of the reply's words against a reference's, the best over the references, in [0, 1] (SQuAD, section 6.1).

    After SQuAD's normalisation. An empty reply scores 1 against an empty reference, and 0 against any other. See
    :func:`textgym.rewards.abstain.token_f1`.
    """

    def similarity(self, reply: str, references: Sequence[str]) -> float:
        """The best F1."""
        return token_f1(reply, references)


class DistinctN(_ReplyReward):
    """Distinct n-grams of words as a share of the reply's n-grams, in [0, 1]: 1 where none comes twice.

    Li et al., "A Diversity-Promoting Objective Function", 2016, section 5.2, who divide by the number of words. A reply
    of fewer than n words has no n-gram and scores 0, so that saying nothing does not pay.

    Args:
        n: Words in an n-gram.

    Raises:
        RewardError: ``n`` is below 1.
    """

    def __init__(self, n: int = 2) -> None:
        self.n = _order(n)
        self.name = f"distinct_{n}"

    def value(self, reply: str) -> float:
        """Distinct n-grams over n-grams."""
        ngrams = _ngrams(reply, self.n)
        return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class Repetition(_ReplyReward):
    """The share of the reply's n-grams of words that came before in it, in [0, 1]: 0 is best.

    seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training", 2020, section 6. To be subtracted:
    ``reward - 0.5 * Repetition(4)``. A reply of fewer than n words repeats nothing and scores 0.

    Args:
        n: Words in an n-gram.

    Raises:
        RewardError: ``n`` is below 1.
    """

    def __init__(self, n: int = 4) -> None:
        self.n = _order(n)
        self.name = f"repetition_{n}"

    def value(self, reply: str) -> float:
        """One minus distinct n-grams over n-grams."""
        ngrams = _ngrams(reply, self.n)
        return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _order(n: int) -> int:
    if n < 1:
        raise RewardError(f"an n-gram has at least one word, not n={n!r}.")
    return n


def _ngrams(reply: str, n: int) -> list[tuple[str, ...]]:
    words = _words(reply)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


class Length(_ReplyReward):
    """1 where the reply's length is within bounds, falling linearly to 0 outside them.

    Below ``low`` it is length / low, 0 for an empty reply; above ``high`` it is 2 - length / high, 0 from twice
    ``high`` on. An empty reply scores 1 where ``low`` is 0.

    Args:
        low: The shortest length that is right.
        high: The longest one.
        unit: ``"words"`` or ``"characters"``.

    Raises:
        RewardError: Not 0 <= low <= high with high above 0, or there is no such unit.
    """

    def __init__(self, low: int, high: int, unit: LengthUnit = "words") -> None:
        if not 0 <= low <= high or high == 0:
            raise RewardError(f"bounds of a length are 0 <= low <= high with high above 0, not {low!r} and {high!r}.")
        if unit not in get_args(LengthUnit):
            raise RewardError(f"a length is in {' or '.join(get_args(LengthUnit))}, not {unit!r}.")
        self.low, self.high, self.unit = low, high, unit
        self.name = f"length_{unit}"

    def value(self, reply: str) -> float:
        """The value of the reply's length."""
        length = len(_words(reply)) if self.unit == "words" else len(reply)
        if length < self.low:
            return length / self.low
        return min(1.0, max(0.0, 2 - length / self.high))


class Matches(_ReplyReward):
    """1 where a regular expression matches the reply, else 0; an empty reply is matched like any other.

    Args:
        pattern: A regular expression of the ``re`` module, compiled or not. The replies are the model's, so take care
            that none makes it backtrack for ever.
        full: Whether all of the reply must match, or any part of it.
        name: Under which it is logged, where there are several.

    Raises:
        RewardError: The pattern is no regular expression of texts.
    """

    def __init__(self, pattern: str | re.Pattern[str], full: bool = True, name: str = "matches") -> None:
        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise RewardError(f"{pattern!r} is no regular expression: {error}.") from error
        if not isinstance(self.pattern.pattern, str):
            raise RewardError(f"{pattern!r} matches bytes; a reply is a text.")
        self.full, self.name = full, name

    def value(self, reply: str) -> float:
        """1.0 or 0.0."""
        match = self.pattern.fullmatch if self.full else self.pattern.search
        return float(match(reply) is not None)


class Contains(Reward):
    """The share of the given words or phrases that the reply contains, in [0, 1].

    As whole words, in either case, with any blanks between the words of a phrase: "ice cream" is in "Ice  cream!" but
    not in "ice creams". An empty reply scores 0.

    Args:
        phrases: The words or phrases, the same for every sample.
        meta: Instead: the key of ``Sample.meta`` under which each sample has its own. A sample that has none there is
            not scored.
        name: Under which it is logged, where there are several.

    Raises:
        RewardError: Both or neither are given, or the phrases are no texts, blank, or none at all.
    """

    def __init__(
        self, phrases: Iterable[str] | None = None, *, meta: str | None = None, name: str = "contains"
    ) -> None:
        if (phrases is None) == (meta is None):
            raise RewardError("give Contains either phrases or meta=..., the key under which each sample has its own.")
        self.phrases = () if phrases is None else _phrases(phrases, "phrases")
        self.meta, self.name = meta, name

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The share contained in each stripped reply; no value for a sample without phrases."""
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> Score:
        try:
            phrases = self._wanted(episode.sample)
        except RewardError as error:
            return Score(None, status=f"{self.name}: sample {episode.sample.id!r}: {error}")
        found = sum(_phrase_pattern(phrase).search(episode.response) is not None for phrase in phrases)
        return Score(found / len(phrases))

    def _wanted(self, sample: Sample) -> tuple[str, ...]:
        if self.meta is None:
            return self.phrases
        return _phrases(sample.meta.get(self.meta), f"meta[{self.meta!r}]")


def _phrases(given: Any, where: str) -> tuple[str, ...]:
    # a text is an iterable of texts, too: its letters
    phrases = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()
    if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise RewardError(f"{where} is a list of words or phrases, such as ['Paris'], not {given!r}.")
    return phrases


@lru_cache(CACHED_TEXTS)
def _phrase_pattern(phrase: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
