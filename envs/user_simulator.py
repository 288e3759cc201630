"""A simulated user who wants to book something, and how this user understands an agent.

Agenda-based (Schatzmann et al. 2007, "Agenda-Based User Simulation for Bootstrapping a POMDP Dialogue System"): the
user has a goal, one value a slot, and an agenda of what is still to be told, from which every reply takes a few items;
questions and mistakes of the agent push items on top. What a user does is decided by the goal and by what the agent
says. Chance only chooses the words, so that a conversation can be planned without knowing them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from textgym.envs.invention import CITIES, DAYS, PEOPLE, capitalised, words
from textgym.episode import Sample
from textgym.errors import DataError

__all__ = [
    "DOMAINS",
    "MAX_TURNS",
    "SIGHTS",
    "SLOTS",
    "Domain",
    "Goal",
    "Reading",
    "Reply",
    "Slot",
    "User",
    "understand",
]

MAX_TURNS = 6
"""Turns of the agent after which a conversation ends."""

MAX_TOLD = 3
"""Nobody tells more slots at once."""

NUMBERS = words("one two three four five six seven eight nine ten eleven twelve")
SPELLINGS = {word: str(number) for number, word in enumerate(NUMBERS, 1)} | {"noon": "12"}
SIGHTS = tuple(f"the {sight}" for sight in words("station airport museum park church school office market library"))
CLOCK = r"(?::00)?\s?(?:[ap]\.?m\b|o'clock)"


@dataclass(frozen=True)
class Slot:
    """One thing that the agent has to find out.

    Args:
        values: What it may be.
        question: How an agent asks for it.
        asked: A pattern of what asks for it, in lower-case text.
        stated: A pattern of what states its value, in lower-case text; ``VALUE`` stands for any value. A slot of
            numbers knows them spelled out as well.
    """

    values: tuple[str, ...]
    question: str
    asked: str
    stated: str

    @cached_property
    def asked_pattern(self) -> re.Pattern[str]:
        """Finds a question."""
        return re.compile(self.asked)

    @cached_property
    def stated_pattern(self) -> re.Pattern[str]:
        """Finds a value, in the one group that takes part in the match."""
        return re.compile(self.stated.replace("VALUE", rf"({'|'.join(map(re.escape, self.spellings))})"))

    @cached_property
    def spellings(self) -> dict[str, str]:
        """The value that a lower-case text stands for."""
        spelled = {text: value for text, value in SPELLINGS.items() if value in self.values}
        return {value.lower(): value for value in self.values} | spelled


SLOTS: Mapping[str, Slot] = MappingProxyType(
    {
        "people": Slot(
            tuple(map(str, range(2, 10))),
            "how many people",
            r"\b(?:how many|number of|party size)\b",
            rf"\bfor VALUE\b(?!{CLOCK}|:)|\bVALUE (?:people|persons|guests|passengers|of you)\b",
        ),
        "origin": Slot(
            CITIES + SIGHTS,
            "from where",
            r"\bfrom (?:where|which)\b|\bwhere\b[^.?!]*\bfrom\b|\b(?:origin|departure|pick you up)\b",
            r"\bfrom VALUE\b",
        ),
        "destination": Slot(
            CITIES + SIGHTS,
            "to where",
            r"\bto (?:where|which)\b|\bwhere to\b|\bdestination\b"
            r"|\bwhere\b[^.?!]*\b(?:go|going|travell?ing|headed)\b(?! from)",
            r"\bto VALUE\b",
        ),
        "day": Slot(
            DAYS,
            "what day",
            r"\b(?:day|date|when)\b",
            r"\bVALUE\b",
        ),
        "time": Slot(
            tuple(map(str, range(1, 13))),
            "what time",
            r"\b(?:time|hour|when|how late)\b",
            rf"\bat VALUE\b|\bVALUE{CLOCK}",
        ),
        "name": Slot(
            PEOPLE,
            "what name",
            r"\b(?:name|who|whom|whose)\b",
            r"\bVALUE\b",
        ),
    }
)
"""The slots by name."""


@dataclass(frozen=True)
class Domain:
    """Something that can be booked.

    Args:
        thing: What, with its article.
        fragments: How a value is said in a sentence, by slot, in the order of the sentence and of the agent's form.
    """

    thing: str
    fragments: Mapping[str, str]

    def say(self, values: Mapping[str, str]) -> str:
        """The values, as part of a sentence."""
        return " ".join(text.format(values[slot]) for slot, text in self.fragments.items() if slot in values)

    @property
    def instruction(self) -> str:
        """What the agent is there for."""
        fields = ", ".join(self.fragments)
        return f"You book {self.thing.split()[-1]}s: {fields}. Confirm, then say goodbye."


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        "table": Domain("a table", {"people": "for {}", "day": "on {}", "time": "at {}", "name": "for {}"}),
        "train": Domain("a train", {"destination": "to {}", "day": "on {}", "time": "at {}", "people": "for {}"}),
        "taxi": Domain("a taxi", {"origin": "from {}", "destination": "to {}", "time": "at {}", "people": "for {}"}),
    }
)
"""What can be booked, by name."""

CLOSING = re.compile(r"\b(?:good ?bye|bye|see you|have an? (?:nice|good|great|lovely|pleasant) \w+)\b")


class Reading(NamedTuple):
    """What a message says, as far as it is understood.

    Args:
        asked: Slots that it asks for.
        stated: Values that it states, by slot.
        closing: Whether it says goodbye.
    """

    asked: frozenset[str]
    stated: Mapping[str, str]
    closing: bool


@lru_cache(maxsize=1 << 14)
def understand(text: str) -> Reading:
    """Reads a message by its key words.

    A slot whose value is stated is not asked for; several values joined by "or" ask for it, else the last one counts.
    """
    lower = text.lower().replace("’", "'")
    rest = CLOSING.sub(" ", lower)
    asked, stated = set(), {}
    for name, slot in SLOTS.items():
        values = [_value(slot, match) for match in slot.stated_pattern.finditer(rest)]
        is_choice = len(set(values)) > 1 and re.search(r"\bor\b", rest) is not None
        if values and not is_choice:
            stated[name] = values[-1]
        elif is_choice or slot.asked_pattern.search(rest):
            asked.add(name)
    return Reading(frozenset(asked), MappingProxyType(stated), rest != lower)


def _value(slot: Slot, match: re.Match[str]) -> str:
    return next(slot.spellings[group] for group in match.groups() if group is not None)


@dataclass(frozen=True)
class Goal:
    """What a user wants, and how this user is.

    Args:
        domain: What is to be booked, a key of ``DOMAINS``.
        wants: The value of each of the domain's slots, in the end.
        told: What the opening says.
        volunteers: How many slots beyond those asked for a reply tells.
        patience: The user leaves when more than this is spent: 1 for each turn of the agent, and 1 more for each
            repeated question, for each contradiction and for a turn that says nothing.
        changed_slot: The slot about which the user has a change of mind, if any.
        changed_from: Its value before that.
        changes_in: The reply, counted from 1, with which it comes, or a later one if the slot was not told before it;
            at the latest when the agent has stated everything as the user wants it.
    """

    domain: str
    wants: Mapping[str, str]
    told: Mapping[str, str]
    volunteers: int = 0
    patience: int = MAX_TURNS
    changed_slot: str | None = None
    changed_from: str | None = None
    changes_in: int = 1

    @classmethod
    def of(cls, sample: Sample) -> Goal:
        """The goal that a sample's ``meta`` holds: ``domain``, ``wants`` and what else differs from the defaults.

        What the opening has told is read from the last message of the prompt.

        Raises:
            DataError: It holds no goal, or one that cannot be; the message names the sample.
        """
        fields = {name: sample.meta[name] for name in cls.__dataclass_fields__ if name in sample.meta}
        domain = DOMAINS.get(fields.get("domain", ""))
        if domain is None:
            raise DataError(
                f"sample {sample.id!r}: domain={fields.get('domain')!r} is nothing to book; there are "
                f"{', '.join(DOMAINS)}."
            )
        opening = understand(sample.messages[-1]["content"]).stated
        goal = cls(**{**fields, "told": {slot: opening[slot] for slot in domain.fragments if slot in opening}})
        _check_goal(goal, f"sample {sample.id!r}")
        return goal

    @property
    def wants_at_first(self) -> dict[str, str]:
        """What the user wants before the change of mind."""
        before = {} if self.changed_slot is None else {self.changed_slot: str(self.changed_from)}
        return {**self.wants, **before}


def _check_goal(goal: Goal, place: str) -> None:
    slots = DOMAINS[goal.domain].fragments
    numbers = {"volunteers": goal.volunteers, "patience": goal.patience, "changes_in": goal.changes_in}
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 0:
            raise DataError(f"{place}: {name}={number!r}; it is a whole number, 0 or more.")
    if not isinstance(goal.wants, Mapping) or set(goal.wants) != set(slots):
        raise DataError(f"{place}: wants={goal.wants!r}; a {goal.domain} has the slots {', '.join(slots)}.")
    if goal.changed_slot is not None and goal.changed_slot not in slots:
        raise DataError(f"{place}: changed_slot={goal.changed_slot!r} is none of {', '.join(slots)}.")
    for slot, value in [*goal.wants.items(), *goal.wants_at_first.items()]:
        if value not in SLOTS[slot].values:
            raise DataError(f"{place}: {slot} is {value!r}; it may be {', '.join(SLOTS[slot].values)}.")
    for slot, value in goal.told.items():
        if value != goal.wants_at_first[slot]:
            raise DataError(
                f"{place}: the opening says {slot} {value!r}, and the user wants {goal.wants_at_first[slot]!r}."
            )


@dataclass(frozen=True)
class Reply:
    """What the user says next, values by slot.

    Args:
        repeated: What had been told before.
        corrected: What the agent had stated wrongly.
        answered: What is new: asked for, or volunteered.
        changed: What the user wants otherwise than before.
        affirms: Whether what the agent stated is right.
        hurries: Whether patience is nearly at its end.
    """

    repeated: Mapping[str, str] = field(default_factory=dict)
    corrected: Mapping[str, str] = field(default_factory=dict)
    answered: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    affirms: bool = False
    hurries: bool = False

    @property
    def told(self) -> dict[str, str]:
        """All values in it."""
        return {**self.repeated, **self.corrected, **self.answered, **self.changed}

    def words(self, domain: Domain, rng: np.random.Generator) -> str:
        """The reply as text, in words that ``rng`` chooses."""
        acts = [
            (self.hurries, HURRYING, {}),
            (self.repeated, REPEATING, self.repeated),
            (self.corrected, CORRECTING, self.corrected),
            (self.affirms, AFFIRMING, {}),
            (self.answered, ANSWERING, self.answered),
            (self.changed, CHANGING, self.changed),
            (not self.told and not self.affirms, LOST, {}),
        ]
        return " ".join(_sentence(phrases, domain.say(values), rng) for said, phrases, values in acts if said)


HURRYING = ("Hurry up.", "I have no time.")
REPEATING = ("I said {}.", "As I said, {}.", "{}, as I said.")
CORRECTING = ("No, {}.", "No, I said {}.")
AFFIRMING = ("Yes.", "Yes, thank you.", "Right.")
ANSWERING = ("{}.", "{}, please.")
CHANGING = ("Oh, {} instead.", "Or rather {}.")
LOST = ("What?", "Sorry?")


def _sentence(phrases: Sequence[str], values: str, rng: np.random.Generator) -> str:
    return capitalised(phrases[int(rng.integers(len(phrases)))].format(values))


class User:
    """A user in a conversation.

    Args:
        goal: What this user wants.

    Attributes:
        wants: What the user wants by now, by slot.
        told: What the user has told so far.
        booking: What the agent has stated last, by slot.
        reply: What the user says next.
        ending: Why the conversation is over: the agent has ``"closed"`` it, the user has ``"left"``, or it took too
            many ``"turns"``. None while it goes on.
        turns, contradictions, repeated_questions: Counts of the agent's turns; of values that the agent stated and the
            user didn't want then; of the agent's questions for what had been told.
    """

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.wants = goal.wants_at_first
        self.told = dict(goal.told)
        self.booking: dict[str, str] = {}
        self.reply = Reply()
        self.ending: Literal["closed", "left", "turns"] | None = None
        self.turns = self.contradictions = self.repeated_questions = self.spent = 0

    @classmethod
    def after(cls, goal: Goal, messages: Iterable[str]) -> User:
        """The user as these messages of the agent leave it."""
        user = cls(goal)
        for message in messages:
            user.hear(message)
        return user

    @property
    def domain(self) -> Domain:
        """What the user wants to book."""
        return DOMAINS[self.goal.domain]

    @property
    def is_satisfied(self) -> bool:
        """Whether the agent has closed the conversation with the booking that the user wants in the end."""
        return self.ending == "closed" and self.booking == self.goal.wants

    def hear(self, message: str) -> None:
        """Takes in a message of the agent; :attr:`reply` or :attr:`ending` is what comes of it."""
        reading = understand(message)
        stated = {slot: value for slot, value in reading.stated.items() if slot in self.wants}
        asked = [slot for slot in self.wants if slot in reading.asked]
        wrong = [slot for slot, value in stated.items() if value != self.wants[slot]]
        repeated = [slot for slot in asked if slot in self.told]
        says_nothing = not (stated or asked or reading.closing)
        self.booking |= stated
        self.turns += 1
        self.contradictions += len(wrong)
        self.repeated_questions += len(repeated)
        self.spent += 1 + len(repeated) + len(wrong) + says_nothing
        if reading.closing:
            self.ending = "closed"
        elif self.spent > self.goal.patience:
            self.ending = "left"
        elif self.turns >= MAX_TURNS:
            self.ending = "turns"
        else:
            self.reply = self._answer(asked, stated, wrong, repeated)
            self.told |= self.reply.told

    def _answer(self, asked: list[str], stated: dict[str, str], wrong: list[str], repeated: list[str]) -> Reply:
        changed = self._changed()
        untold = [slot for slot in self.wants if slot not in {*self.told, *wrong, *changed}]
        new = [slot for slot in untold if slot in asked]
        others = [slot for slot in untold if slot not in asked] if asked or stated else []
        unasked = self.goal.volunteers if asked else max(1, self.goal.volunteers)
        answers = [*new, *others[:unasked]][:MAX_TOLD]
        return Reply(
            repeated={slot: self.wants[slot] for slot in repeated if slot not in changed},
            corrected={slot: self.wants[slot] for slot in wrong if slot not in changed},
            answered={slot: self.wants[slot] for slot in answers},
            changed=changed,
            affirms=bool(stated) and not wrong and not changed,
            hurries=self.spent >= self.goal.patience,
        )

    def _changed(self) -> dict[str, str]:
        """The slot's new value, which the user wants from now on, if the change of mind comes now."""
        slot = self.goal.changed_slot
        if slot is None or self.wants[slot] == self.goal.wants[slot]:
            return {}
        is_due = self.turns >= self.goal.changes_in and slot in self.told
        if not is_due and self.booking != self.wants:
            return {}
        self.wants[slot] = self.goal.wants[slot]
        return {slot: self.wants[slot]}
