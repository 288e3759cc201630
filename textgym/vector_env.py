"""Many conversations at once: the fast form of the token environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textgym.conversation import transcript
from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError
from textgym.rendering import Format
from textgym.rewards import Reward
from textgym.setting import TokenSetting
from textgym.streams import Streams
from textgym.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenVectorEnv"]


class TokenVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """``num_envs`` token environments in step, with the same trajectories as a vector of :class:`~textgym.TokenEnv`.

    Episodes that end in the same step are scored in one call. An environment whose episode has ended starts the next
    one in the same step (``AutoresetMode.SAME_STEP``); what it ended with is in ``infos["final_obs"]`` and
    ``infos["final_info"]``, laid out as Gymnasium's ``SyncVectorEnv`` does.

    Args:
        task: The task, shared by all.
        num_envs: How many.
        copy: Whether observations are copies. If not they are views of arrays that the next step writes to, which is
            faster; ``final_obs`` is a copy always.
        group_size: The k-th episodes since the last reset of so many neighbouring environments are about the same
            sample, drawn at random, and meet the same chance on the environment's side: groups of replies to one
            prompt, for algorithms that compare them.
        max_episode_steps: Truncate episodes after so many steps, as Gymnasium's TimeLimit does; they are not scored.
        reward, split, tokenizer, max_new_tokens, max_context, format, render_mode: As in :class:`~textgym.TokenEnv`.

    Raises:
        ConfigurationError: An argument cannot work; :class:`~textgym.errors.TokenizerError` where it is the tokenizer.
        DataError: The split is empty.
    """

    metadata = {  # noqa: RUF012 (as Gymnasium declares it)
        "render_modes": ["ansi"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        *,
        copy: bool = True,
        group_size: int = 1,
        max_episode_steps: int | None = None,
        reward: Reward | Callable[..., Any] | None = None,
        split: str = "train",
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        max_new_tokens: int | None = None,
        max_context: int | None = None,
        format: Format | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ConfigurationError(f"num_envs={num_envs}; it is at least 1.")
        if group_size < 1 or num_envs % group_size:
            raise ConfigurationError(f"group_size={group_size} does not divide the {num_envs} environments.")
        self.setting = TokenSetting(
            task,
            reward=reward,
            split=split,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            max_context=max_context,
            format=format,
        )
        self.num_envs = num_envs
        self.copy = copy
        self.group_size = group_size
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.single_observation_space = self.setting.observation_space
        self.single_action_space = self.setting.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._streams = Streams(self.setting, num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._steps = np.zeros(num_envs, np.int64)
        self._groups = [_SharedDraws(group_size) for _ in range(num_envs // group_size if group_size > 1 else 0)]

    @property
    def task(self) -> Task:
        """The task."""
        return self.setting.task

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids are the actions."""
        return self.setting.tokenizer

    @property
    def samples(self) -> Sequence[Sample]:
        """The data of the environments' split."""
        return self.setting.samples

    @property
    def episodes(self) -> list[Episode | None]:
        """The episodes under way; None before the first reset."""
        return list(self._streams.episodes)

    def reset(  # type: ignore[override]  # a list of seeds, as SyncVectorEnv takes
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode in every environment.

        Args:
            seed: Environment i is reset as ``TokenEnv.reset(seed=seed + i)`` does, or with ``seed[i]``.
            options: ``"samples"``: the index of the sample for each environment, None for a random one.
                ``"reset_mask"``: ``(num_envs,)`` bool, the environments to reset; the others go on.

        Raises:
            PromptTooLongError: A sample's prompt leaves no room for a reply.
            ConfigurationError: The options or seeds do not fit.
        """
        seeds = self._seeds(seed)
        options = options or {}
        indices = self._one_each("options['samples']", options.get("samples"))
        mask = self._one_each("options['reset_mask']", options.get("reset_mask"), True)
        for group, draws in enumerate(self._groups):
            of_group = slice(group * self.group_size, (group + 1) * self.group_size)
            if all(mask[of_group]):
                draws.restart(seeds[of_group][0])
        infos = {row: self._begin(row, seeds[row], indices[row]) for row in range(self.num_envs) if mask[row]}
        return self._observation(), batched_infos(infos, self.num_envs)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Appends one token in every environment, and starts the next episode where one ends.

        Args:
            actions: ``(num_envs,)`` token ids.

        Raises:
            ResetNeeded: There has been no reset.
            InvalidAction: An action is no token id.
        """
        rewards, terminated, step_infos = self._streams.advance(np.asarray(actions))
        self._steps += 1
        truncated = np.zeros(self.num_envs, dtype=bool)
        if self.max_episode_steps is not None:
            truncated = (self._steps >= self.max_episode_steps) & ~terminated
        over = terminated | truncated
        infos = step_infos
        rows = over.nonzero()[0].tolist()
        for row, final_obs in zip(rows, self._streams.observations_of(rows), strict=True):
            final = {"final_obs": final_obs, "final_info": step_infos.get(row, {})}
            infos[row] = {**final, **self._begin(row)}
        return self._observation(), rewards, terminated, truncated, batched_infos(infos, self.num_envs)

    def action_masks(self) -> np.ndarray:
        """Which tokens each agent may choose next, ``(num_envs, len(tokenizer))`` bool."""
        return np.stack([self._streams.action_mask(row) for row in range(self.num_envs)])

    def render(self) -> tuple[Any, ...] | None:
        """The conversations so far as text, with ``render_mode="ansi"``."""
        if self.render_mode != "ansi":
            return None
        return tuple(transcript(episode) for episode in self._streams.episodes if episode is not None)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Each environment's attribute or method result, as ``SyncVectorEnv.call`` gives it.

        Raises:
            AttributeError: There is none of this name.
        """
        if name == "action_masks":
            return tuple(self.action_masks())
        value = getattr(self, name)
        return (value(*args, **kwargs) if callable(value) else value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Each environment's attribute; all share it."""
        return (getattr(self, name),) * self.num_envs

    def _begin(self, row: int, seed: int | None = None, index: int | None = None) -> dict[str, Any]:
        if self._groups and index is None:
            group, member = divmod(row, self.group_size)
            seed, index = self._groups[group].next(member, self.setting)
        rng = self._rngs[row]
        if seed is not None or rng is None:
            rng, _ = seeding.np_random(None if seed is None else int(seed))
            self._rngs[row] = rng
        self._steps[row] = 0
        return self._streams.begin(row, rng, seed, index)

    def _observation(self) -> dict[str, np.ndarray]:
        observation = self._streams.observation
        return {name: array.copy() for name, array in observation.items()} if self.copy else observation

    def _one_each(self, name: str, values: Any, default: Any = None) -> Sequence[Any]:
        if values is None:
            return [default] * self.num_envs
        if not hasattr(values, "__len__") or len(values) != self.num_envs:
            raise ConfigurationError(
                f"{name} needs one value for each of the {self.num_envs} environments, not {values!r}."
            )
        return values

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            return [int(seed) + i for i in range(self.num_envs)]
        return self._one_each("seed", seed)


def batched_infos(infos: Mapping[int, dict[str, Any]], n: int) -> dict[str, Any]:
    """The infos of some of n environments in arrays, as Gymnasium's ``VectorEnv._add_info`` lays them out.

    An array has the type of its first value; beside it stands the mask of those that have one, ``_name``. Gymnasium's
    own adds one value at a time, which takes longer than all else where many episodes end together.
    """
    batched: dict[str, Any] = {}
    for name in dict.fromkeys(chain.from_iterable(infos.values())):
        having = {row: info[name] for row, info in infos.items() if name in info}
        rows, values = np.fromiter(having, np.int64), list(having.values())
        first = values[0]
        if isinstance(first, dict) and name != "final_obs":
            batched[name] = batched_infos(having, n)
        elif isinstance(first, (bool, int, float, np.number, np.ndarray)):
            batched[name] = np.zeros((n, *np.shape(first)), dtype=getattr(first, "dtype", type(first)))
            batched[name][rows] = values
        else:
            batched[name] = np.full(n, None, dtype=object)
            batched[name][rows] = np.fromiter(values, dtype=object)
        batched[f"_{name}"] = np.zeros(n, dtype=bool)
        batched[f"_{name}"][rows] = True
    return batched


class _SharedDraws:
    """What the members of a group are given: in their k-th episodes the same seed and the same sample.

    Members fall out of step, so the draws that some have had are kept until :meth:`restart`.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rng: np.random.Generator | None = None
        self.restart()

    def restart(self, seed: int | None = None) -> None:
        if seed is not None or self.rng is None:
            self.rng, _ = seeding.np_random(None if seed is None else int(seed))
        self.drawn: list[tuple[int, int]] = []
        self.n_taken = [0] * self.size

    def next(self, member: int, setting: TokenSetting) -> tuple[int, int]:
        place = self.n_taken[member]
        self.n_taken[member] += 1
        if place == len(self.drawn) and self.rng is not None:
            self.drawn.append((int(self.rng.integers(2**31)), setting.draw(self.rng)))
        return self.drawn[place]
