"""What an agent is at turn level: it is shown conversations, and replies."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium.utils import seeding

from textgym.conversation import score_turns, take_reply, transcript
from textgym.episode import Episode, StopReason
from textgym.errors import ConfigurationError
from textgym.evaluation import episode_seed
from textgym.rewards import Reward
from textgym.setting import Setting
from textgym.task import Task
from textgym.texts import whole

__all__ = [
    "Agent",
    "Conversation",
    "Observation",
    "Reply",
    "check_agent",
    "replies_to",
    "take_turns",
    "total_usage",
]

STOPS: tuple[StopReason, ...] = ("eos", "stop_string", "length", "context")
"""Why a reply may end; that the task ends the episode is the task's to say."""
HUGE = 1e300  # what sums of such amounts can still be as floats


@dataclass(frozen=True)
class Observation:
    """A conversation in which it is the agent's turn.

    Args:
        episode: What has happened so far. Its sample holds the references, which are for yardsticks alone.
        task: What it is about; ``task.max_new_tokens`` and ``task.stop`` say how long a reply may be.
        seed: For an agent that replies at random: this episode's and this turn's, the same whenever they come again.
        reward: By which the episode is judged, for yardsticks alone; None: the task's own.
    """

    episode: Episode
    task: Task
    seed: int = 0
    reward: Reward | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """Prompt and turns as chat messages ``{"role", "content"}``."""
        return self.episode.messages

    @property
    def text(self) -> str:
        """Prompt and turns as a text: ``role: text`` lines, or the prompt itself where it is a text."""
        prompt = self.episode.sample.prompt
        return prompt if isinstance(prompt, str) and not self.episode.turns else transcript(self.episode)

    @property
    def turn(self) -> int:
        """How often the agent has replied before."""
        return len(self.episode.responses)


@dataclass(frozen=True)
class Reply:
    """An agent's reply, where there is more to say than its text.

    Args:
        text: What it says.
        stop_reason: Why it ends: ``"eos"`` or ``"stop_string"``; or ``"length"`` or ``"context"`` where it was cut off,
            which ends the episode.
        usage: What it cost, in finite numbers, summed up in reports: ``{"completion_tokens": 12}``.
        failure: Why there is no reply, in words. The episode ends unscored, for this reason.
    """

    text: str = ""
    stop_reason: StopReason = "eos"
    usage: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


def total_usage(usages: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What several replies cost together, by name."""
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage)  # type: ignore[arg-type]  # adds floats as well
    return dict(total)


class Agent(Protocol):
    """Anything with this method.

    An agent that takes its time, such as one behind an endpoint, may have a number ``at_a_time``: a benchmark shows it
    at most as many conversations at once, and writes down what came of them before the next.
    """

    def act(self, observations: Sequence[Observation]) -> Sequence[str | Reply]:
        """A reply to each of these conversations, in order."""


def check_agent(agent: object) -> None:
    """Makes sure that something is an agent.

    Raises:
        ConfigurationError: It has no method ``act``, or is a class.
    """
    if isinstance(agent, type) or not callable(getattr(agent, "act", None)):
        hint = " Make an object of the class." if isinstance(agent, type) else ""
        raise ConfigurationError(
            f"{agent!r} is no agent: an agent is an object with a method act(observations) that returns replies.{hint}"
        )


def replies_to(agent: Agent, observations: Sequence[Observation]) -> list[Reply]:
    """The agent's replies; where it raises, or answers with something else, a failure for each culprit.

    Raises:
        ConfigurationError: The agent has no ``act``.
    """
    check_agent(agent)
    try:
        found = agent.act(observations)
        replies = [found] if isinstance(found, str) else list(found)
        if len(replies) != len(observations) or isinstance(found, str):
            raise ConfigurationError(f"act gave {found!r:.100} to {len(observations)} observations: not a reply each.")
    except Exception as error:  # noqa: BLE001 (whatever a user's agent raises is the episode's status, never a score)
        if len(observations) > 1:
            return [replies_to(agent, [observation])[0] for observation in observations]
        return [Reply(failure=whole(f"agent: {type(error).__name__}: {error}"))]
    return list(map(_as_reply, replies))


def _as_reply(given: object) -> Reply:
    """The reply with whole characters and plain numbers; where something is wrong with it, a failure that says what."""
    reply = Reply(given) if isinstance(given, str) else given
    if not isinstance(reply, Reply):
        fault = f"a reply is a str or a textgym.agent.Reply, not {reply!r:.100}"
    elif not isinstance(reply.text, str):
        fault = f"the text of a reply is a str, not {reply.text!r:.100}"
    elif reply.stop_reason not in STOPS:
        fault = f"the stop_reason of a reply is one of {', '.join(STOPS)}, not {reply.stop_reason!r:.100}"
    elif not isinstance(reply.usage, Mapping) or not all(map(_is_amount, reply.usage.values())):
        fault = f"the usage of a reply holds finite numbers by name, not {reply.usage!r:.100}"
    elif reply.failure is not None and (not isinstance(reply.failure, str) or reply.failure in ("", "ok")):
        fault = f"the failure of a reply says why there is none, and is not {reply.failure!r:.100}"
    else:
        failure = None if reply.failure is None else whole(reply.failure)
        usage = {str(name): _plain_amount(amount) for name, amount in reply.usage.items()}
        return Reply(whole(reply.text), reply.stop_reason, usage, failure)
    return Reply(failure=whole(f"agent: {fault}"))


def _is_amount(value: Any) -> bool:
    return isinstance(value, numbers.Real) and abs(_plain_amount(value)) < HUGE


def _plain_amount(value: Any) -> float:
    return int(value) if isinstance(value, numbers.Integral) else float(value)


class Conversation:
    """One episode at turn level, as :func:`textgym.evaluation.play` would have it with the same seed.

    Args:
        setting: Task, split and reward.
        seed: Of the evaluation.
        index: Of the sample.
    """

    def __init__(self, setting: Setting, seed: int, index: int) -> None:
        self.setting, self.seed, self.index = setting, seed, index
        self.rng: np.random.Generator = seeding.np_random(episode_seed(seed, index))[0]
        self.episode = Episode(setting.samples[index], seed=episode_seed(seed, index))
        self.usage: dict[str, float] = {}
        self.failed = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or the agent failed to reply."""
        return self.failed or self.episode.stop_reason is not None

    def observation(self) -> Observation:
        """What the agent is shown next."""
        turn = len(self.episode.responses) + 1  # a place that ends in 0 has the seed of the environment's own side
        seed = episode_seed(self.seed, self.index, turn)
        return Observation(self.episode, self.setting.task, seed, self.setting.reward)

    def take(self, reply: Reply) -> None:
        """What the agent says, and the task's answer; a failure of either is the episode's end."""
        self.usage = total_usage((self.usage, reply.usage))
        if reply.failure is not None:
            self._fail(reply.failure)
            return
        try:
            take_reply(self.setting, self.episode, reply.text, reply.stop_reason, self.rng)
        except Exception as error:  # noqa: BLE001 (one episode's failure is not its neighbours')
            self._fail(whole(f"task: {type(error).__name__}: {error}"))

    def _fail(self, reason: str) -> None:
        self.failed = True
        self.episode.score_status = reason


def take_turns(conversations: Sequence[Conversation], replies: Sequence[Reply]) -> None:
    """A reply in each of these conversations, of one setting; what is due is scored for all at once."""
    for conversation, reply in zip(conversations, replies, strict=True):
        conversation.take(reply)
    answered = [conversation for conversation in conversations if not conversation.failed]
    if answered:
        score_turns(answered[0].setting, [conversation.episode for conversation in answered])
