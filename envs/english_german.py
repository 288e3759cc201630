"""Simple sentences in English and German, made by a small grammar over a lexicon.

The German is correct: articles and adjectives agree in gender, number and case, the finite verb comes second, what
belongs to it comes last, negation is "nicht" or "kein" where it should be. It can also be that of a learner.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from textgym.envs.invention import Chance, capitalised, words

__all__ = ["Clause", "ClauseMaker", "Style"]

T = TypeVar("T")

Kind = Literal["statement", "negation", "question"]
KINDS: tuple[Kind, ...] = ("statement",) * 7 + ("negation",) * 2 + ("question",)

# Endings in the nominative and the accusative, by gender; "p" is the plural.
Endings = dict[str, tuple[str, str]]
DEFINITE: Endings = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das"), "p": ("die", "die")}
INDEFINITE: Endings = {"m": ("", "en"), "f": ("e", "e"), "n": ("", ""), "p": ("e", "e")}  # ein, kein, mein
AFTER_DEFINITE: Endings = {"m": ("e", "en"), "f": ("e", "e"), "n": ("e", "e"), "p": ("en", "en")}
AFTER_INDEFINITE: Endings = {"m": ("er", "en"), "f": ("e", "e"), "n": ("es", "es"), "p": ("en", "en")}


class Style(NamedTuple):
    """How German is written.

    Args:
        synonym: Which of the words that mean the same; the last one where there are fewer.
        learner: As one who knows the words, but takes every noun for masculine, knows no case, and keeps the English
            word order.
    """

    synonym: int = 0
    learner: bool = False

    def choose(self, synonyms: Sequence[T]) -> T:
        """One of the synonyms."""
        return synonyms[min(self.synonym, len(synonyms) - 1)]


@dataclass(frozen=True)
class Phrase:
    """Words that do not change (an adjective's stem, too), and their German synonyms."""

    english: str
    german: tuple[str, ...]


class GermanNoun(NamedTuple):
    """A noun's forms; names and pronouns have no gender and no plural."""

    nominative: str
    gender: str = ""
    accusative: str = ""
    plural: str = ""


@dataclass(frozen=True)
class Noun:
    """An English noun, without a plural where it cannot be counted, and its German synonyms."""

    singular: str
    plural: str
    german: tuple[GermanNoun, ...]
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NounPhrase:
    """A subject or an object.

    Args:
        noun: A name or a pronoun, too.
        determiner: ``"the"``, ``"my"``, ``"a"`` (which is nothing in the plural); ``""`` for names and pronouns.
        adjective: Before the noun.
        person: What the verb agrees with: ``"first"`` or ``"third"`` of the singular, or ``"plural"``.
    """

    noun: Noun
    determiner: str = ""
    adjective: Phrase | None = None
    person: str = "third"

    @property
    def is_indefinite(self) -> bool:
        """Whether it has an indefinite article, or none in the plural."""
        return self.determiner == "a"

    def english(self) -> str:
        """The phrase."""
        plural = self.determiner and self.person == "plural"
        described = joined(_english(self.adjective), self.noun.plural if plural else self.noun.singular)
        article = self.determiner
        if self.is_indefinite:
            article = "" if plural else "an" if described[0] in "aeiou" else "a"
        return joined(article, described)

    def german(self, style: Style, *, accusative: bool = False, negated: bool = False) -> str:
        """The phrase in the nominative or the accusative; negated, an indefinite one is with "kein"."""
        noun = style.choose(self.noun.german)
        if not self.determiner:
            return noun.nominative
        plural = self.person == "plural"
        case = int(accusative and not style.learner)
        gender = "p" if plural else "m" if style.learner else noun.gender
        if self.determiner == "the":
            article, ending = DEFINITE[gender][case], AFTER_DEFINITE[gender][case]
        elif self.is_indefinite and plural and not negated:
            article, ending = "", "e"
        else:
            stem = "mein" if self.determiner == "my" else "kein" if negated else "ein"
            article, ending = stem + INDEFINITE[gender][case], AFTER_INDEFINITE[gender][case]
        adjective = _german(self.adjective, style)
        form = noun.plural if plural else noun.accusative if case else noun.nominative
        return joined(article, adjective and adjective + ("e" if style.learner else ending), form)


class GermanVerb(NamedTuple):
    """A verb's forms; the particle is the prefix that the finite verb leaves at the end: "macht ... auf"."""

    infinitive: str
    third: str
    particle: str = ""

    def finite(self, person: str) -> str:
        """The present tense."""
        plural = self.infinitive.removeprefix(self.particle)
        return {"first": plural[:-1], "third": self.third, "plural": plural}[person]


@dataclass(frozen=True)
class Verb:
    """An English verb, its German synonyms, and what its subject and its object may be."""

    base: str
    third: str
    german: tuple[GermanVerb, ...]
    subjects: frozenset[str]
    objects: frozenset[str]


class Modal(NamedTuple):
    """A verb that another one depends on."""

    english: str
    english_third: str
    german: str
    german_plural: str


CAN = Modal("can", "can", "kann", "können")
MUST = Modal("must", "must", "muss", "müssen")
WANT = Modal("want to", "wants to", "will", "wollen")
MODALS: dict[Kind, tuple[Modal, ...]] = {  # "must not" is no negation of "must"
    "statement": (CAN, MUST, WANT),
    "negation": (CAN, WANT),
    "question": (CAN, MUST, WANT),
}


class Being(NamedTuple):
    """The predicate that someone is somehow."""

    adjective: Phrase

    def english(self, person: str, kind: Kind) -> tuple[str, str]:
        """The finite verb and the rest."""
        return {"first": "am", "third": "is", "plural": "are"}[person], self.adjective.english

    def german(self, person: str, style: Style) -> tuple[str, str]:
        """The finite verb and what comes last."""
        return {"first": "bin", "third": "ist", "plural": "sind"}[person], _german(self.adjective, style)


class Doing(NamedTuple):
    """The predicate that someone does something, or can, must or wants to."""

    verb: Verb
    modal: Modal | None = None

    def english(self, person: str, kind: Kind) -> tuple[str, str]:
        """The finite verb, an auxiliary where the kind of sentence needs one, and the rest."""
        if self.modal in (CAN, MUST):
            return self.modal.english, self.verb.base
        base, third = self.verb.base, self.verb.third
        if self.modal is not None:
            base, third = f"{self.modal.english} {base}", f"{self.modal.english_third} {base}"
        if kind == "statement":
            return third if person == "third" else base, ""
        return "does" if person == "third" else "do", base

    def german(self, person: str, style: Style) -> tuple[str, str]:
        """The finite verb and what comes last."""
        form = style.choose(self.verb.german)
        if self.modal is None:
            return form.finite(person), form.particle
        return self.modal.german_plural if person == "plural" else self.modal.german, form.infinitive


@dataclass(frozen=True)
class Clause:
    """What is said, in neither language.

    Args:
        subject: Who does it, or is it.
        predicate: What.
        object: Of the verb.
        place: Last but the time, in English.
        time: Last, in English, or first where ``time_first``.
        frequency: How often; only in statements without a modal verb.
        kind: Of sentence.
    """

    subject: NounPhrase
    predicate: Being | Doing
    object: NounPhrase | None = None
    place: Phrase | None = None
    time: Phrase | None = None
    time_first: bool = False
    frequency: Phrase | None = None
    kind: Kind = "statement"

    def english(self) -> str:
        """The sentence, in British spelling."""
        finite, rest = self.predicate.english(self.subject.person, self.kind)
        subject = self.subject.english()
        what = self.object.english() if self.object else ""
        first, time = self._time(_english(self.time))
        if self.kind == "question":
            start = [finite, subject]
        else:
            start = [first, subject, _english(self.frequency), finite, "not" if self.kind == "negation" else ""]
        return self._sentence(*start, rest, what, _english(self.place), time).replace("can not", "cannot")

    def german(self, style: Style) -> str:
        """The sentence in this style."""
        finite, last = self.predicate.german(self.subject.person, style)
        subject = self.subject.german(style)
        negated = self.kind == "negation"
        first, time = self._time(_german(self.time, style))
        frequency, place = _german(self.frequency, style), _german(self.place, style)
        if style.learner:
            what = self.object.german(style) if self.object else ""
            start = [finite, subject] if self.kind == "question" else [first, subject, frequency, finite]
            return self._sentence(*start, "nicht" if negated else "", last, what, place, time)
        has_kein = negated and self.object is not None and self.object.is_indefinite
        what = self.object.german(style, accusative=True, negated=has_kein) if self.object else ""
        start = [first, finite, subject] if first or self.kind == "question" else [subject, finite]
        return self._sentence(*start, time, frequency, what, "nicht" if negated and not has_kein else "", place, last)

    def _time(self, time: str) -> tuple[str, str]:
        """At the beginning, or elsewhere."""
        return (time, "") if self.time_first else ("", time)

    def _sentence(self, *parts: str) -> str:
        return capitalised(joined(*parts)) + ("?" if self.kind == "question" else ".")


def joined(*parts: str) -> str:
    """With blanks between those that are not empty."""
    return " ".join(filter(None, parts))


def _english(phrase: Phrase | None) -> str:
    return phrase.english if phrase else ""


def _german(phrase: Phrase | None, style: Style) -> str:
    return style.choose(phrase.german) if phrase else ""


# The lexicon


def _pronoun(english: str, german: str, person: str = "third") -> NounPhrase:
    return NounPhrase(Noun(english, "", (GermanNoun(german),)), person=person)


PRONOUNS = (
    _pronoun("I", "ich", "first"),
    _pronoun("he", "er"),
    _pronoun("she", "sie"),
    _pronoun("we", "wir", "plural"),
    _pronoun("they", "sie", "plural"),
)
NAMES = tuple(_pronoun(name, name) for name in words("Anna Ben Clara David Emma Felix Iris Leo Maria Noah Paul Rosa"))
PERSON = frozenset({"person"})


@cache
def nouns_of(kinds: frozenset[str]) -> tuple[Noun, ...]:
    """Every noun of one of these kinds."""
    return tuple(noun for noun in nouns() if noun.kinds & kinds)


@cache
def nouns() -> tuple[Noun, ...]:
    """Every noun of the lexicon."""
    return tuple(
        Noun(
            english,
            rows[0]["english_plural"],
            tuple(GermanNoun(row["german"], row["gender"], row["accusative"], row["german_plural"]) for row in rows),
            _kinds(rows[0]["kinds"]),
        )
        for english, rows in _table("nouns").items()
    )


@cache
def verbs() -> tuple[Verb, ...]:
    """Every verb of the lexicon."""
    return tuple(
        Verb(
            english,
            rows[0]["english_third"],
            tuple(GermanVerb(row["infinitive"], row["third"], row["particle"]) for row in rows),
            _kinds(rows[0]["subjects"]),
            _kinds(rows[0]["objects"]),
        )
        for english, rows in _table("verbs").items()
    )


@cache
def phrases_of(kinds: frozenset[str]) -> tuple[Phrase, ...]:
    """The adjectives for something of one of these kinds; also of kind "time", "frequency" and "place"."""
    return tuple(
        Phrase(english, tuple(row["german"] for row in rows))
        for english, rows in _table("phrases").items()
        if _kinds(rows[0]["kinds"]) & kinds
    )


def _table(name: str) -> dict[str, list[dict[str, str]]]:
    """A table's rows by their English word; those of one word are synonyms in German, the preferred one first."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (Path(__file__).parent / "data" / "translation" / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            rows.setdefault(row["english"], []).append(row)
    return rows


def _kinds(cell: str) -> frozenset[str]:
    return frozenset(cell.split())


# The sentences


class ClauseMaker(Chance):
    """Makes up clauses that mean something."""

    def clause(self) -> Clause:
        """A statement, a negation or a question."""
        kind = self.one_of(KINDS)
        return self._being(kind) if self.happens(0.15) else self._doing(kind)

    def _being(self, kind: Kind) -> Clause:
        subject, kinds = self._person(), PERSON
        if self.happens(0.8):
            noun = self.one_of(nouns())
            subject, kinds = self._noun_phrase(noun, ("the", "the", "my"), described=False), noun.kinds
        return Clause(subject, Being(self.one_of(phrases_of(kinds))), kind=kind)

    def _doing(self, kind: Kind) -> Clause:
        verb = self.one_of(verbs())
        modal = self.one_of(MODALS[kind]) if self.happens(0.25) else None
        objects = nouns_of(verb.objects)
        clause = Clause(
            self._person() if self.happens(0.4) else self._noun_phrase(self.one_of(nouns_of(verb.subjects))),
            Doing(verb, modal),
            self._noun_phrase(self.one_of(objects)) if objects else None,
            kind=kind,
        )
        if kind == "statement" and modal is None and self.happens(0.2):
            clause = replace(clause, frequency=self._phrase("frequency"))
        elif self.happens(0.4):
            clause = replace(clause, time=self._phrase("time"), time_first=kind != "question" and self.happens(0.5))
        is_long = bool(objects and clause.time)
        if kind != "negation" and not is_long and self.happens(0.3 if objects else 0.6):
            clause = replace(clause, place=self._phrase("place"))
        return clause

    def _phrase(self, kind: str) -> Phrase:
        return self.one_of(phrases_of(frozenset({kind})))

    def _person(self) -> NounPhrase:
        return self.one_of(PRONOUNS if self.happens(0.6) else NAMES)

    def _noun_phrase(
        self, noun: Noun, determiners: Sequence[str] = ("the", "the", "the", "a", "a", "my"), described: bool = True
    ) -> NounPhrase:
        determiner = self.one_of(determiners)
        return NounPhrase(
            noun,
            "the" if determiner == "a" and not noun.plural else determiner,
            self.one_of(phrases_of(noun.kinds)) if described and self.happens(0.5) else None,
            "plural" if noun.plural and self.happens(0.25) else "third",
        )
