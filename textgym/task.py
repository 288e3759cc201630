"""The task: where the data come from, what the environment says, how it is scored and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from textgym.episode import Episode, Sample
from textgym.rewards import Reward

__all__ = ["Task"]


class Task(ABC):
    """A language task: a data set, and the environment's side of the conversation.

    Subclass it and give at least :meth:`samples`. A task holds no state of an episode (many run at once); what an
    episode needs to remember goes into ``episode.state``.

    Attributes:
        reward: The default reward: a :class:`~textgym.Reward` or a plain function; None if one must be given.
        stop: Strings that end the agent's turn as soon as its text contains one; the text is cut before it.
        max_new_tokens: The default budget of tokens of one turn of the agent.
        recipe: How ``textgym train`` trains the built-in model on the task, where the command line does not say
            otherwise: ``{"total_timesteps": 200_000, "ppo.learning_rate": 3e-5, "warm_start.epochs": 5}``. The names
            are those of its ``--set``, see :class:`textgym.agents.run_settings.Settings`.
        headline_metrics: The metrics to look at first, in progress lines and curves; by default the first few.
    """

    reward: Reward | Callable[..., Any] | None = None
    stop: Sequence[str] = ()
    max_new_tokens: int = 64
    recipe: Mapping[str, Any] = MappingProxyType({})
    headline_metrics: Sequence[str] = ()

    @abstractmethod
    def samples(self, split: str) -> Sequence[Sample]:
        """The data of a split: ``"train"``, ``"validation"``, ``"test"`` or one of the task's own."""

    def respond(self, episode: Episode, rng: np.random.Generator) -> str | None:
        """The environment's next message after a turn of the agent, or None to end the episode.

        The default ends it: one turn. Randomness comes from ``rng`` alone, the environment's own generator.
        """
        return None

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means over finished, scored episodes, by name; reported by evaluation beside the reward."""
        return {}

    def demonstration(self, sample: Sample) -> list[str] | None:
        """The agent's reply or replies, one a turn, that a supervised warm start imitates; None if there is none.

        The default is the first reference.
        """
        return [sample.references[0]] if sample.references else None

    def lesson(self, sample: Sample) -> list[str] | None:
        """The reply or replies, one a turn, by which a model is taught what a sample is about, before any training.

        The default is the first reference.
        """
        return [sample.references[0]] if sample.references else None

    def warm_start_samples(self) -> Sequence[Sample]:
        """The samples whose demonstrations the warm start imitates: by default those of the train split."""
        return self.samples("train")

    def forbidden_tokens(self, episode: Episode, vocabulary: dict[str, int]) -> Sequence[int]:
        """Token ids that the agent must not choose next, on top of what the environment forbids."""
        return ()

    @property
    def is_multi_turn(self) -> bool:
        """Whether the task answers the agent, which it does by defining :meth:`respond`."""
        return type(self).respond is not Task.respond
