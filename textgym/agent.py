"""What an agent is at turn level: it is shown conversations, and replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from gymnasium.utils import seeding

from textgym.conversation import take_replies, transcript
from textgym.episode import Episode, StopReason
from textgym.errors import ConfigurationError
from textgym.evaluation import episode_seed
from textgym.setting import Setting
from textgym.task import Task

__all__ = ["Agent", "Conversation", "Observation", "Reply", "go_on", "replies_to", "total_usage"]


@dataclass(frozen=True)
class Observation:
    """A conversation in which it is the agent's turn.

    Args:
        episode: What has happened so far. Its sample holds the references, which are for yardsticks alone.
        task: What it is about; ``task.max_new_tokens`` and ``task.stop`` say how long a reply may be.
        seed: For an agent that replies at random: this episode's and this turn's, the same whenever they come again.
    """

    episode: Episode
    task: Task
    seed: int = 0

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
        stop_reason: Why it ends: ``"eos"``, or ``"length"`` where it was cut off, which ends the episode.
        usage: What it cost, summed up in reports: ``{"completion_tokens": 12}``.
        failure: Why there is no reply. The episode ends unscored, for this reason.
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
    """Anything with this method."""

    def act(self, observations: Sequence[Observation]) -> Sequence[str | Reply]:
        """A reply to each of these conversations, in order."""


def replies_to(agent: Agent, observations: Sequence[Observation]) -> list[Reply]:
    """The agent's replies; where it raises, or answers with something else, a failure for each culprit.

    Raises:
        ConfigurationError: The agent has no ``act``.
    """
    if not callable(getattr(agent, "act", None)):
        raise ConfigurationError(f"{agent!r} is no agent: it has no method act(observations) that returns replies.")
    try:
        replies = [_as_reply(reply) for reply in agent.act(observations)]
        if len(replies) != len(observations):
            raise ConfigurationError(f"act gave {len(replies)} replies to {len(observations)} observations.")
    except Exception as error:  # noqa: BLE001 (whatever a user's agent raises is the episode's status, never a score)
        if len(observations) > 1:
            return [replies_to(agent, [observation])[0] for observation in observations]
        return [Reply(failure=f"agent: {type(error).__name__}: {error}")]
    return replies


def _as_reply(reply: object) -> Reply:
    if isinstance(reply, str):
        return Reply(reply)
    if not isinstance(reply, Reply):
        raise ConfigurationError(f"a reply is a str or a textgym.agent.Reply, not {reply!r}.")
    return reply


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
        turn = len(self.episode.responses)
        return Observation(self.episode, self.setting.task, episode_seed(self.seed, self.index, turn))


def go_on(conversations: Sequence[Conversation], agent: Agent) -> None:
    """One turn of the agent in each of these conversations, of one setting."""
    replies = replies_to(agent, [conversation.observation() for conversation in conversations])
    answered: list[Conversation] = []
    texts: list[tuple[str, StopReason]] = []
    for conversation, reply in zip(conversations, replies, strict=True):
        conversation.usage = total_usage((conversation.usage, reply.usage))
        if reply.failure is not None:
            conversation.failed = True
            conversation.episode.score_status = reply.failure
        else:
            answered.append(conversation)
            texts.append((reply.text, reply.stop_reason))
    if answered:
        episodes = [conversation.episode for conversation in answered]
        take_replies(answered[0].setting, episodes, texts, [conversation.rng for conversation in answered])
