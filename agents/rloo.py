"""RLOO: REINFORCE with a leave-one-out baseline among the replies to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textgym.agents.objectives import leave_one_out
from textgym.agents.reinforce import REINFORCE
from textgym.errors import ConfigurationError

__all__ = ["RLOO"]


class RLOO(REINFORCE):
    """REINFORCE over groups: a reply's baseline is the mean return of the other replies to the same prompt.

    A whole episode is one action: all of its tokens have the advantage of its undiscounted return, the KL included.
    The environments are made in groups, ``textgym.make_vec(..., num_envs=64, group_size=8)``. The arguments are those
    of :class:`textgym.agents.REINFORCE`; ``n_episodes`` is a multiple of the group's size, and ``gamma`` is 1.

    Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
    in LLMs", 2024 (https://arxiv.org/abs/2402.14740). The gradient is averaged over tokens.

    Raises:
        ConfigurationError: The environments are not in groups, or an argument has a wrong value.
    """

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.gamma != 1.0:
            raise ConfigurationError(f"{type(self).__name__} takes whole returns: gamma is 1, not {self.gamma}.")
        size = self._environment_attribute("group_size")
        if self.env is not None and (size is None or size < 2):
            raise ConfigurationError(
                f"{type(self).__name__} compares replies to the same prompt; make the environments in groups: "
                "textgym.make_vec(..., num_envs=64, group_size=8)."
            )
        if size is not None and (self.n_episodes or 0) % size:
            raise ConfigurationError(f"n_episodes={self.n_episodes} is no multiple of the groups' size, {size}.")

    def estimate_advantages(self) -> Sequence[np.ndarray]:
        """Each episode's advantage for each of its tokens."""
        earned = self.rollout_buffer.earned()
        advantages = self.compare(np.array([rewards.sum() for rewards in earned]), self.groups())
        return [np.full(len(rewards), value) for rewards, value in zip(earned, advantages, strict=True)]

    def compare(self, returns: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Advantages ``(S,)`` of returns ``(S,)``; equal groups ``(S,)`` mean the same prompt."""
        return leave_one_out(returns, groups)

    def groups(self) -> np.ndarray:
        """The number of each episode's group, in the order of the buffer's segments."""
        environments, places = self.rollout_buffer.environments_and_places()
        return environments // self._environment_attribute("group_size") + places * self.n_envs
