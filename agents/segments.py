"""A rollout stored as token streams, and its minibatches as whole segments.

A segment is the part of one episode that lies in one rollout: one token sequence, and the actions taken in it. The
observation is append-only within an episode, so the last observation of a segment contains all the earlier ones, and
one pass over it gives the log-probabilities and values of all of its actions.

Shapes: T steps, E environments, N actions of a minibatch, R rows (segments) of a group, W tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

__all__ = ["SegmentGroup", "SegmentSamples", "TokenRolloutBuffer", "TokenSegments"]

PADDING_SHARE = 0.2
"""Rows stand in one group as long as padding stays under this share of it."""


@dataclass(frozen=True)
class SegmentGroup:
    """Segments of similar length in one right-padded array, and where their actions are predicted.

    Args:
        input_ids: (R, W) int64.
        agent_mask: (R, W) bool, the tokens that the agent wrote, in an earlier rollout or in this one.
        rows: (n,) int64, the row of each action.
        columns: (n,) int64, the column of the token before it, whose hidden state predicts it.
    """

    input_ids: Tensor
    agent_mask: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class TokenSegments:
    """The observations of a minibatch: groups of segments; the actions are in the order of the groups.

    Args:
        groups: The groups.
        one_by_one: Whether only one group's activations may be held at a time, for the price of another forward pass.
    """

    groups: tuple[SegmentGroup, ...]
    one_by_one: bool = False


class SegmentSamples(NamedTuple):
    """SB3's ``RolloutBufferSamples``, with segments for observations and (N,) for the rest.

    Beyond SB3's: ``reference_log_prob``, zeros where there is no reference, and ``sequences`` int64, the number of each
    action's segment, 0 to R - 1 in this minibatch.
    """

    observations: TokenSegments
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    reference_log_prob: Tensor
    sequences: Tensor


@dataclass(frozen=True)
class _Segment:
    environment: int
    start: int  # in the environment's stream
    stop: int
    first_step: int
    last_step: int  # inclusive
    place: int  # which one of the environment's segments in the rollout, from 0

    @property
    def n_actions(self) -> int:
        return self.last_step - self.first_step + 1


class TokenRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer for token environments: each environment's stream of tokens is stored once.

    ``rewards``, ``values``, ``log_probs``, ``episode_starts``, ``advantages`` and ``returns`` have SB3's shape (T, E).
    The buffer grows past ``buffer_size`` where a rollout is measured in episodes, and then ends with the T that it got.

    Attributes:
        unscored: (T, E) bool, steps whose reward could not be scored; their whole segment is not yielded.
        n_unscored: The number of segments left out for it.
        before_advantages: Called before the advantages are computed, with the finished rollout.
        estimate_advantages: Gives the advantages of all segments, each ``(length,)``, in place of SB3's estimate from
            the values; None: SB3's.
        reference_log_probs: (T, E), the actions' log-probabilities under the reference; zeros where there is none.
        micro_batch_size: At most so many actions, but at least one segment, are in a group; None: there is no limit.
        quota: (E,) how many whole episodes are still wanted of each environment; None: all steps are.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        self.before_advantages: Callable[[], None] = lambda: None
        self.estimate_advantages: Callable[[], Sequence[np.ndarray]] | None = None
        self.micro_batch_size: int | None = None
        self.nominal_size = buffer_size
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empties the buffer."""
        self.buffer_size = self.nominal_size
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.returns = np.zeros(shape, dtype=np.float32)
        self.advantages = np.zeros(shape, dtype=np.float32)
        self.values = np.zeros(shape, dtype=np.float32)
        self.log_probs = np.zeros(shape, dtype=np.float32)
        self.reference_log_probs = np.zeros(shape, dtype=np.float32)
        self.episode_starts = np.zeros(shape, dtype=np.float32)
        self.unscored = np.zeros(shape, dtype=bool)
        self.surplus = np.zeros(shape, dtype=bool)
        self.positions = np.zeros(shape, dtype=np.int64)  # in the stream, of the token before the action
        self.streams = np.zeros((self.n_envs, 2 * self.buffer_size + 64), dtype=np.int64)
        self.agent_masks = np.zeros(self.streams.shape, dtype=bool)  # which of their tokens the agent wrote
        self.stream_starts = np.zeros(self.n_envs, dtype=np.int64)  # of the current segment
        self.stream_ends = np.zeros(self.n_envs, dtype=np.int64)
        self.quota: np.ndarray | None = None
        self.segments: list[_Segment] | None = None
        self.n_unscored = 0
        self.seen = 0
        self.pos = 0
        self.full = False

    _per_step = (
        "actions",
        "rewards",
        "returns",
        "advantages",
        "values",
        "log_probs",
        "reference_log_probs",
        "episode_starts",
        "unscored",
        "surplus",
        "positions",
    )

    def _resize(self, n_steps: int) -> None:
        for name in self._per_step:
            old = getattr(self, name)
            new = np.zeros((n_steps, self.n_envs), dtype=old.dtype)
            new[: min(n_steps, len(old))] = old[:n_steps]
            setattr(self, name, new)
        self.buffer_size = n_steps

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Adds one step. ``obs`` is ignored where :meth:`see` was shown the step's observation before."""
        if self.seen == self.pos:
            self.see(obs, episode_start)
        if self.quota is not None:
            self.quota -= np.asarray(episode_start, dtype=bool) & (self.pos > 0)
            self.surplus[self.pos] = self.quota <= 0
        self.actions[self.pos] = np.asarray(action).reshape(self.n_envs)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.detach().cpu().numpy().reshape(self.n_envs)
        self.log_probs[self.pos] = log_prob.detach().cpu().numpy().reshape(self.n_envs)
        self.pos += 1
        self.full = self.quota is None and self.pos == self.buffer_size

    def see(self, obs: dict[str, np.ndarray], episode_start: np.ndarray) -> None:
        """Takes the tokens of the observation that the next action is chosen on; reads it at once, and keeps nothing.

        SB3 adds an observation only after the next step, which has by then written over an environment's own arrays
        (``copy=False``).
        """
        if self.seen == self.buffer_size:
            self._resize(2 * self.buffer_size)
        restarts = np.asarray(episode_start, dtype=bool) | (self.seen == 0)
        self._add_tokens(obs["input_ids"], obs["agent_mask"], obs["attention_mask"].sum(-1, dtype=np.int64), restarts)
        self.positions[self.seen] = self.stream_ends - 1
        self.seen += 1

    def _add_tokens(self, ids: np.ndarray, mask: np.ndarray, lengths: np.ndarray, restarts: np.ndarray) -> None:
        """Appends each row's new tokens to its stream: all of them where a segment begins, else what it gained."""
        self.stream_starts = np.where(restarts, self.stream_ends, self.stream_starts)
        held = self.stream_ends - self.stream_starts
        gained = lengths - held
        needed = int((self.stream_ends + gained).max())
        width = self.streams.shape[1]
        if needed > width:
            wider = ((0, 0), (0, max(needed, 2 * width) - width))
            self.streams, self.agent_masks = np.pad(self.streams, wider), np.pad(self.agent_masks, wider)
        single = np.flatnonzero(gained == 1)
        several = np.flatnonzero(gained > 1)
        for stored, seen in ((self.streams, ids), (self.agent_masks, mask)):
            stored[single, self.stream_ends[single]] = seen[single, lengths[single] - 1]
            for row in several:
                end = self.stream_ends[row]
                stored[row, end : end + gained[row]] = seen[row, held[row] : lengths[row]]
        self.stream_ends = self.stream_ends + gained

    def owes_episodes(self, dones: np.ndarray) -> bool:
        """Whether an environment has not yet finished the episodes that are wanted of it."""
        return self.quota is not None and bool((self.quota - dones > 0).any())

    def mark_unscored(self, rows: Sequence[int]) -> None:
        """Marks the step that is about to be added as unscored in some environments."""
        self.unscored[self.pos, list(rows)] = True

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """SB3's or ``estimate_advantages``, after ``before_advantages`` has had its say on the finished rollout."""
        self._resize(self.pos)
        self.full = True
        self.segments = self._find_segments()
        self.before_advantages()
        if self.estimate_advantages is None:
            super().compute_returns_and_advantage(last_values, dones)
            return
        for segment, advantages in zip(self.segments, self.estimate_advantages(), strict=True):
            self.advantages[segment.first_step : segment.last_step + 1, segment.environment] = advantages

    def earned(self) -> list[np.ndarray]:
        """The rewards of each segment's actions, ``(length,)`` float32 each, in the order of ``segments``."""
        return [self.rewards[s.first_step : s.last_step + 1, s.environment] for s in self.segments or ()]

    def environments_and_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Each segment's environment, and which one of its segments in the rollout it is; int64, one each."""
        found = [(s.environment, s.place) for s in self.segments or ()]
        environments, places = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return environments, places

    def _find_segments(self) -> list[_Segment]:
        """Segments to train on, in order of environment and time."""
        starts = self.episode_starts.astype(bool)
        starts[0] = True
        self.n_unscored = 0
        segments = []
        for environment in range(self.n_envs):
            bounds = [*np.flatnonzero(starts[:, environment]), self.buffer_size]
            for place, (first, after) in enumerate(pairwise(bounds)):
                steps = slice(first, after)
                if self.surplus[first, environment]:
                    continue
                if self.unscored[steps, environment].any():
                    self.n_unscored += 1
                    continue
                stop = int(self.positions[after - 1, environment]) + 1
                start = self._stream_start(int(first), environment)
                segments.append(_Segment(environment, start, stop, int(first), int(after) - 1, place))
        return segments

    def _stream_start(self, first_step: int, environment: int) -> int:
        """Where the segment that begins at a step begins in the stream: where the one before it ended."""
        return 0 if first_step == 0 else int(self.positions[first_step - 1, environment]) + 1

    @property
    def n_trainable(self) -> int:
        """The number of actions that :meth:`get` yields an epoch."""
        return sum(s.n_actions for s in self.segments or ())

    @property
    def n_begun(self) -> int:
        """The number of episodes to train on that began in this rollout."""
        return sum(bool(self.episode_starts[s.first_step, s.environment]) for s in self.segments or ())

    def get(  # type: ignore[override]  # samples of SB3's form, with segments for observations
        self, batch_size: int | None = None
    ) -> Generator[SegmentSamples, None, None]:
        """Yields whole segments in random order, up to about ``batch_size`` actions at a time; all where it is None.

        A minibatch is closed when the next segment would take it further past ``batch_size`` than it now is below.
        """
        segments = self.segments or []
        if batch_size is None or batch_size >= self.n_trainable:
            if segments:
                yield self.samples(segments)
            return
        batch: list[_Segment] = []
        size = 0
        for index in np.random.permutation(len(segments)):
            length = segments[index].n_actions
            if batch and abs(size + length - batch_size) > abs(size - batch_size):
                yield self.samples(batch)
                batch, size = [], 0
            batch.append(segments[index])
            size += length
        yield self.samples(batch)

    def samples(self, segments: Sequence[_Segment] | None = None) -> SegmentSamples:
        """A minibatch of these segments (None: all of them), rows of similar length together."""
        ordered = sorted(self.segments or [] if segments is None else segments, key=lambda s: s.stop - s.start)
        groups = tuple(self._group(rows) for rows in _similar(ordered, self.micro_batch_size))
        step, environment = self.indices(ordered)
        lengths = [s.n_actions for s in ordered]

        def of_actions(values: np.ndarray) -> Tensor:
            return self.to_torch(values[step, environment])

        return SegmentSamples(
            observations=TokenSegments(groups, one_by_one=self.micro_batch_size is not None),
            actions=of_actions(self.actions),
            old_values=of_actions(self.values),
            old_log_prob=of_actions(self.log_probs),
            advantages=of_actions(self.advantages),
            returns=of_actions(self.returns),
            reference_log_prob=of_actions(self.reference_log_probs),
            sequences=self.to_torch(np.repeat(np.arange(len(ordered)), lengths)),
        )

    def indices(self, segments: Sequence[_Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Steps and environments (N,) of the segments' actions, in order."""
        step = [np.arange(s.first_step, s.last_step + 1) for s in segments]
        environment = [np.full(s.n_actions, s.environment) for s in segments]
        return np.concatenate(step), np.concatenate(environment)

    def all_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and environments of all actions, in the order of ``samples()``."""
        return self.indices(sorted(self.segments or [], key=lambda s: s.stop - s.start))

    def _group(self, segments: Sequence[_Segment]) -> SegmentGroup:
        width = max(s.stop - s.start for s in segments)
        ids = np.zeros((len(segments), width), dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=bool)
        rows, columns = [], []
        for row, s in enumerate(segments):
            ids[row, : s.stop - s.start] = self.streams[s.environment, s.start : s.stop]
            mask[row, : s.stop - s.start] = self.agent_masks[s.environment, s.start : s.stop]
            columns.append(self.positions[s.first_step : s.last_step + 1, s.environment] - s.start)
            rows.append(np.full(len(columns[-1]), row))
        arrays: tuple[Any, ...] = (ids, mask, np.concatenate(rows), np.concatenate(columns))
        return SegmentGroup(*(self.to_torch(array) for array in arrays))


def _similar(segments: Sequence[_Segment], most_actions: int | None = None) -> list[list[_Segment]]:
    """Cuts segments, sorted by length, into runs whose padding stays small, of so many actions at most if it can be."""
    groups: list[list[_Segment]] = []
    tokens = actions = 0
    for segment in segments:
        length = segment.stop - segment.start
        if (
            groups
            and (len(groups[-1]) < 8 or tokens + length >= (1 - PADDING_SHARE) * (len(groups[-1]) + 1) * length)
            and (most_actions is None or actions + segment.n_actions <= most_actions)
        ):
            groups[-1].append(segment)
            tokens, actions = tokens + length, actions + segment.n_actions
        else:
            groups.append([segment])
            tokens, actions = length, segment.n_actions
    return groups
