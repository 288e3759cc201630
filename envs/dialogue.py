"""Dialogue: several turns as a customer-service agent who takes a booking from a simulated user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np

from textgym.data import BuiltinTask, Columns, Source
from textgym.envs.invention import CITIES, Chance, capitalised
from textgym.envs.recipe import COMMON
from textgym.envs.user_simulator import DOMAINS, SIGHTS, SLOTS, Goal, User
from textgym.episode import Episode, Sample
from textgym.errors import DataError
from textgym.rewards import Reward, Score

__all__ = ["CLERKS", "BookingReward", "Clerk", "Dialogue", "builtin_goals", "user_in"]

N_SAMPLES = 10_000
SEED = (2026, 3, 7)
OPENINGS = ("I'd like {}.", "Hello, I want {}.", "I'd like to book {}.")
PLACES = {"origin": SIGHTS, "destination": CITIES}  # no two slots of a goal have values of one kind
# What is drawn for a goal: each of several is as likely as any other.
TOLD = (0, 1, 1, 2, 2)  # slots in the opening
VOLUNTEERS = (0, 0, 0, 1, 1)
PATIENCE = (4, 5, 6, 7, 8)  # 4 turns are enough for any booking, where each of them counts
CLERKS_ON_DUTY = ("form", "form", "attentive", "brisk")
CHANGES_IN = (1, 2, 3)
CHANGING_SHARE = 0.5


@dataclass(frozen=True)
class Clerk:
    """A human agent, as the demonstrations show them.

    Args:
        questions: How many things they ask at once.
        listens: Whether they note whatever they are told. Else they go through their form, and note the answer to what
            they asked, and corrections of what they read out.
    """

    questions: int
    listens: bool

    def replies(self, goal: Goal) -> list[str]:
        """What they say to a user, turn by turn, until the conversation is over."""
        return [said for _, said in self.conversation(goal)]

    def conversation(self, goal: Goal) -> Iterator[tuple[User, str]]:
        """The user as they stand, and what the clerk says to that; the user then hears it."""
        user = User(goal)
        notes = dict(user.told) if self.listens else {}
        while user.ending is None:
            asked = self._missing(user, notes)
            said = self.reply(user, notes)
            yield user, said
            user.hear(said)
            told = user.reply.told.items()
            notes |= {slot: value for slot, value in told if self.listens or slot in asked or not asked}

    def reply(self, user: User, notes: Mapping[str, str]) -> str:
        """What they say next: a question for what is missing, all that they noted to be confirmed, or goodbye."""
        missing = self._missing(user, notes)
        if missing:
            return " " + question(missing)
        if user.reply.affirms and user.booking == notes:
            return " Done. Goodbye."
        return f" {booking(user.goal.domain, notes)} Is that right?"

    def _missing(self, user: User, notes: Mapping[str, str]) -> list[str]:
        return [slot for slot in user.wants if slot not in notes][: self.questions]


CLERKS: Mapping[str, Clerk] = MappingProxyType(
    {"form": Clerk(1, listens=False), "attentive": Clerk(1, listens=True), "brisk": Clerk(4, listens=True)}
)
"""The human agents by name."""


def question(slots: Sequence[str]) -> str:
    """Asks for some slots in one sentence."""
    *first, last = (SLOTS[slot].question for slot in slots)
    sentence = f"{', '.join(first)} and {last}" if first else last
    return sentence.capitalize() + "?"


def booking(domain: str, values: Mapping[str, str]) -> str:
    """A booking as a sentence."""
    return capitalised(f"{DOMAINS[domain].thing} {DOMAINS[domain].say(values)}.")


def user_in(episode: Episode) -> User:
    """The user of an episode, as the agent's turns so far leave them.

    Raises:
        DataError: The sample holds no goal, see :meth:`~textgym.envs.user_simulator.Goal.of`.
    """
    return User.after(Goal.of(episode.sample), episode.responses)


class BookingReward(Reward):
    """Worth of a conversation with a :class:`~textgym.envs.user_simulator.User`: a weighted sum of what happened.

    Args:
        goal: For closing the conversation with the booking that the user wants.
        turn: For each turn of the agent.
        repeated_question: For each question for what the user had told.
        contradiction: For each stated value that the user does not want.
        per_turn: Whether each turn earns its own share at once. The sum over a conversation is the same.
    """

    def __init__(
        self,
        goal: float = 1.0,
        turn: float = -0.05,
        repeated_question: float = -0.1,
        contradiction: float = -0.2,
        *,
        per_turn: bool = False,
    ) -> None:
        self.weights = {
            "goal_reached": goal,
            "turns": turn,
            "repeated_questions": repeated_question,
            "contradictions": contradiction,
        }
        self.when = "turn" if per_turn else "episode"

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The value of each conversation or, turn by turn, of its last turn; the parts are what is counted."""
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> Score:
        goal, said = Goal.of(episode.sample), episode.responses
        parts = _counts(User.after(goal, said))
        if self.when == "turn":
            before = _counts(User.after(goal, said[:-1]))
            parts = {name: count - before[name] for name, count in parts.items()}
        return Score(sum(self.weights[name] * count for name, count in parts.items()), parts)


def _counts(user: User) -> dict[str, float]:
    return {
        "goal_reached": float(user.is_satisfied),
        "turns": float(user.turns),
        "repeated_questions": float(user.repeated_questions),
        "contradictions": float(user.contradictions),
    }


class Dialogue(BuiltinTask):
    """Takes a booking from a simulated user: finds out what they want, confirms it and closes.

    The user gives one or several things at once, may have a change of mind, corrects the agent, and leaves when
    patience ends; see :class:`~textgym.envs.user_simulator.User`. What they do depends on the sample and the agent, and
    chance chooses their words.

    Args:
        data: Goals of one's own: rows whose ``prompt`` is the user's opening, with a column for each field of
            :class:`~textgym.envs.user_simulator.Goal` that isn't at its default, ``told`` left out, and optionally
            ``clerk``, who demonstrates it; by default 10,000 built-in ones.
        columns: Which column is which, see :func:`textgym.data.load_samples`.

    Raises:
        DataError: The data are unusable, or a row is no goal.
    """

    reward = BookingReward()
    stop = ("\n",)
    max_new_tokens = 32
    recipe = MappingProxyType({**COMMON, "total_timesteps": 120_000, "warm_start.epochs": 4})
    headline_metrics = ("goal_completion", "turns", "contradictions", "repeated_questions")

    def __init__(self, data: Source | None = None, columns: Columns | str | None = None) -> None:
        super().__init__(data, columns)
        if data is not None:
            for sample in self.samples("all"):
                Goal.of(sample)
                _clerk(sample)

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """The built-in goals."""
        return builtin_goals()

    def respond(self, episode: Episode, rng: np.random.Generator) -> str | None:
        """What the user says next; None when the conversation is over."""
        user = user_in(episode)
        return None if user.ending else user.reply.words(user.domain, rng)

    def demonstration(self, sample: Sample) -> list[str] | None:
        """What a human agent said to this user: the sample's clerk, of whom only some are brisk and attentive."""
        return _clerk(sample).replies(Goal.of(sample))

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The share of goals reached and of users who left, and the mean counts of turns and of mistakes."""
        if not episodes:
            return {}
        users = [user_in(episode) for episode in episodes]
        return {
            "goal_completion": fmean(user.is_satisfied for user in users),
            "turns": fmean(user.turns for user in users),
            "contradictions": fmean(user.contradictions for user in users),
            "repeated_questions": fmean(user.repeated_questions for user in users),
            "left_in_anger": fmean(user.ending == "left" for user in users),
        }


def _clerk(sample: Sample) -> Clerk:
    name = sample.meta.get("clerk", "attentive")
    if name not in CLERKS:
        raise DataError(f"sample {sample.id!r}: clerk={name!r}; there are {', '.join(CLERKS)}.")
    return CLERKS[name]


@cache
def builtin_goals() -> tuple[Sample, ...]:
    """The built-in goals: no two want the same."""
    chance = Chance(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        sample = _invented(chance)
        samples.setdefault(sample.id, sample)
    return tuple(samples.values())


def _invented(chance: Chance) -> Sample:
    name = chance.one_of(tuple(DOMAINS))
    domain = DOMAINS[name]
    slots = tuple(domain.fragments)
    wants: dict[str, str] = {}
    for slot in slots:
        wants[slot] = _value(chance, slot, wants)
    meta: dict[str, Any] = {
        "domain": name,
        "wants": wants,
        "volunteers": chance.one_of(VOLUNTEERS),
        "patience": chance.one_of(PATIENCE),
        "clerk": chance.one_of(CLERKS_ON_DUTY),
    }
    at_first = dict(wants)
    if chance.happens(CHANGING_SHARE):
        slot = chance.one_of(slots)
        at_first[slot] = _value(chance, slot, wants)
        meta |= {"changed_slot": slot, "changed_from": at_first[slot], "changes_in": chance.one_of(CHANGES_IN)}
    told = {slot: at_first[slot] for slot in chance.some_of(slots, chance.one_of(TOLD))}
    opening = chance.one_of(OPENINGS).format(f"{domain.thing} {domain.say(told)}".strip())
    prompt = [{"role": "system", "content": domain.instruction}, {"role": "user", "content": opening}]
    return Sample("/".join([name, *wants.values()]), prompt, (booking(name, wants),), meta)


def _value(chance: Chance, slot: str, others: Mapping[str, str]) -> str:
    """A value of the slot that none of the others has."""
    values = PLACES.get(slot, SLOTS[slot].values)
    while (value := chance.one_of(values)) in others.values():
        pass
    return value
