"""A replay buffer of token streams, and its minibatches as whole episodes.

An episode's observations are prefixes of one token sequence, so one pass over it gives the action values of all of its
steps, and those of the steps after them.

Shapes: E environments, N steps of a minibatch, R rows (episodes) of a group, W tokens of its longest row.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from torch import Tensor

from textgym.agents.interface import is_unscored

__all__ = ["ReplaySamples", "TokenReplayBuffer"]


class ReplaySamples(NamedTuple):
    """Episodes in one right-padded array, and their steps.

    Args:
        input_ids: (R, W) int64.
        rows: (N,) int64, each step's row.
        columns: (N,) int64, the last token of the observation that its action was chosen on.
        next_columns: (N,) int64, the last token of the observation after it.
        actions: (N,) int64.
        rewards: (N,) float32.
        goes_on: (N,) float32, 0 where the episode is over after the step, and nothing more is to be had; else 1.
        next_masks: (N, V) bool, the actions allowed after the step; None: all.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    next_columns: Tensor
    actions: Tensor
    rewards: Tensor
    goes_on: Tensor
    next_masks: Tensor | None


@dataclass
class _Episode:
    columns: list[int] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    masks: list[bytes | None] = field(default_factory=list)
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    truncated: bool = False
    unscored: bool = False

    def __len__(self) -> int:
        return len(self.actions)


class TokenReplayBuffer(ReplayBuffer):
    """SB3's replay buffer for token environments: each finished episode is stored once, as its tokens.

    Episodes under way are not sampled yet, and those that could not be scored never. When there are more than
    ``buffer_size`` steps, the oldest episodes go.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        # not ReplayBuffer's, which allocates an observation a step
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.optimize_memory_usage = optimize_memory_usage
        self._seen: np.ndarray | None = None
        self._masks: np.ndarray | None = None
        self.episodes: deque[_Episode] = deque()
        self.n_steps = 0
        self._open = [_Episode() for _ in range(n_envs)]
        self._known_masks: dict[bytes, bytes] = {}  # most are the same

    def size(self) -> int:
        """The number of steps that can be sampled."""
        return self.n_steps

    def reset(self) -> None:
        """Forgets everything."""
        self.episodes.clear()
        self.n_steps = 0
        self.forget_unfinished()

    def forget_unfinished(self) -> None:
        """Forgets the episodes under way, which a reset of the environments has ended."""
        self._open = [_Episode() for _ in range(self.n_envs)]

    def see(self, obs: dict[str, np.ndarray], masks: np.ndarray | None = None) -> None:
        """Takes how far the observations go that the next actions are chosen on, before the step may write over them.

        Args:
            obs: Of E environments; views of an environment's own arrays (``copy=False``) will do.
            masks: (E, V) bool, the actions that are allowed; None: all.
        """
        self._seen, self._masks = _last_columns(obs), masks

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        next_obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds a step of every environment. ``next_obs`` holds the last observation of an episode that is over.

        ``obs`` is ignored where :meth:`see` was shown it before.
        """
        columns = _last_columns(obs) if self._seen is None else self._seen
        for i, episode in enumerate(self._open):
            episode.columns.append(int(columns[i]))
            episode.actions.append(int(action[i]))
            episode.rewards.append(float(reward[i]))
            episode.masks.append(self._packed(i))
            episode.unscored |= is_unscored(infos[i])
            if done[i]:
                episode.ids = next_obs["input_ids"][i][: int(next_obs["attention_mask"][i].sum())].copy()
                episode.truncated = bool(infos[i].get("TimeLimit.truncated", False))
                self._close(i)
        self._seen = None

    def _packed(self, environment: int) -> bytes | None:
        if self._masks is None or self._masks[environment].all():
            return None
        packed = np.packbits(self._masks[environment]).tobytes()
        return self._known_masks.setdefault(packed, packed)

    def _close(self, environment: int) -> None:
        episode, self._open[environment] = self._open[environment], _Episode()
        if episode.unscored:
            return
        self.episodes.append(episode)
        self.n_steps += len(episode)
        while self.n_steps > self.buffer_size and len(self.episodes) > 1:
            self.n_steps -= len(self.episodes.popleft())
            self.full = True

    def sample(self, batch_size: int, env: Any = None) -> ReplaySamples:  # type: ignore[override]
        """Random whole episodes, with replacement, of ``batch_size`` steps or a few more in all."""
        chosen: list[_Episode] = []
        while sum(map(len, chosen)) < batch_size:
            chosen.append(self.episodes[np.random.randint(len(self.episodes))])
        ids = np.zeros((len(chosen), max(len(episode.ids) for episode in chosen)), np.int64)
        next_columns, goes_on = [], []
        for row, episode in enumerate(chosen):
            ids[row, : len(episode.ids)] = episode.ids
            next_columns += [*episode.columns[1:], len(episode.ids) - 1]
            goes_on += [1.0] * (len(episode) - 1) + [float(episode.truncated)]
        return ReplaySamples(
            self.to_torch(ids),
            self.to_torch(np.repeat(np.arange(len(chosen)), [len(episode) for episode in chosen])),
            self.to_torch(np.concatenate([episode.columns for episode in chosen])),
            self.to_torch(np.array(next_columns)),
            self.to_torch(np.concatenate([episode.actions for episode in chosen])),
            self.to_torch(np.concatenate([episode.rewards for episode in chosen]).astype(np.float32)),
            self.to_torch(np.array(goes_on, np.float32)),
            self._next_masks([mask for episode in chosen for mask in (*episode.masks[1:], None)]),
        )

    def _next_masks(self, packed: list[bytes | None]) -> Tensor | None:
        if not any(packed):
            return None
        width = int(self.action_space.n)  # type: ignore[attr-defined]
        masks = np.ones((len(packed), width), dtype=bool)
        for row, mask in enumerate(packed):
            if mask is not None:
                masks[row] = np.unpackbits(np.frombuffer(mask, np.uint8), count=width)
        return self.to_torch(masks)


def _last_columns(obs: dict[str, np.ndarray]) -> np.ndarray:
    """The place of each row's last token, (E,) int64."""
    return np.asarray(obs["attention_mask"].sum(-1, dtype=np.int64) - 1)
