"""A Gymnasium vector environment as the VecEnv that Stable-Baselines3 works with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from textgym.errors import ConfigurationError

__all__ = ["SB3VecEnv", "sb3_vec_env"]


def sb3_vec_env(venv: VectorEnv) -> SB3VecEnv:
    """The vector environment as an SB3 ``VecEnv``, for any of SB3's and sb3-contrib's algorithms and callbacks.

    An episode that was scored has ``info["episode"]``, as SB3's Monitor writes it; one that could not be scored has
    none, so that no average of SB3's counts it.

    Args:
        venv: A :class:`~textgym.TokenVectorEnv`, or any vector environment that resets in the same step.

    Raises:
        ConfigurationError: It resets in another way, or is none.
    """
    if not isinstance(venv, VectorEnv):
        raise ConfigurationError(f"sb3_vec_env takes a gymnasium.vector.VectorEnv, not {venv!r}.")
    mode = venv.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ConfigurationError(
            f"SB3 needs environments that reset in the same step; this one's autoreset_mode is {mode}. Make it with "
            "textgym.make_vec, or give SyncVectorEnv autoreset_mode=AutoresetMode.SAME_STEP."
        )
    return SB3VecEnv(venv)


class SB3VecEnv(VecEnv):
    """See :func:`sb3_vec_env`; the methods are those of SB3's ``VecEnv``.

    Attributes:
        venv: The Gymnasium vector environment.
    """

    def __init__(self, venv: VectorEnv) -> None:
        self.venv = venv
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(venv.num_envs)
        self._lengths = np.zeros(venv.num_envs, np.int64)
        self._failures: dict[int, str] = {}  # by environment, of the episode under way
        self._started = time.time()
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)

    def reset(self) -> VecEnvObs:
        """Resets all, with the seeds and options given by ``seed`` and ``set_options``."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.venv.reset(seed=seeds, options=self._reset_options_given())  # type: ignore[arg-type]
        self.reset_infos = _by_row(infos, self.num_envs)
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._failures.clear()
        self._reset_seeds()
        self._reset_options()
        return observations

    def _reset_options_given(self) -> dict[str, Any] | None:
        """SB3 has options for each environment, Gymnasium for all: ``sample`` becomes ``samples``."""
        if not any(self._options):
            return None
        return {"samples": [options.get("sample") for options in self._options]}

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions, ``(num_envs,)``, for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all; the infos of ended episodes hold ``terminal_observation`` and ``TimeLimit.truncated``."""
        observations, rewards, terminated, truncated, infos = self.venv.step(self._actions)  # type: ignore[arg-type]
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        rows = _by_row(infos, self.num_envs)
        if "score_status" in infos:
            for i, row in enumerate(rows):
                if row.get("score_status", "ok") != "ok":
                    self._failures.setdefault(i, row["score_status"])
        for i in np.flatnonzero(dones).tolist():
            rows[i] = self._final(i, rows[i], bool(truncated[i] and not terminated[i]))
        return observations, rewards.astype(np.float32), dones, rows

    def _final(self, i: int, infos: dict[str, Any], truncated: bool) -> dict[str, Any]:
        """The last info of an episode; what came with it of the next one's is kept for ``reset_infos``."""
        final = dict(infos.pop("final_info"))
        final["terminal_observation"] = infos.pop("final_obs")
        final["TimeLimit.truncated"] = truncated
        self.reset_infos[i] = infos
        failure = self._failures.pop(i, None)
        if failure is not None:  # a truncated episode has no info of its own to say so
            final.setdefault("score_status", failure)
        if final.get("score_status", "ok") == "ok":
            elapsed = round(time.time() - self._started, 6)
            final["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": elapsed}
        self._returns[i] = 0.0
        self._lengths[i] = 0
        return final

    def close(self) -> None:
        """Closes the vector environment."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each environment."""
        values: Sequence[Any]
        if isinstance(self.venv, SyncVectorEnv):  # its own get_attr calls what can be called, such as a tokenizer
            values = [env.get_wrapper_attr(attr_name) for env in self.venv.envs]
        elif hasattr(self.venv, "get_attr"):
            values = self.venv.get_attr(attr_name)
        else:
            values = (getattr(self.venv, attr_name),) * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute on the vector environment, for all.

        Raises:
            ConfigurationError: Only some of the environments are meant.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigurationError(f"{attr_name!r} can only be set on all environments at once: they share it.")
        setattr(self.venv, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list:
        """The result of the method of each environment."""
        values = self.venv.call(method_name, *method_args, **method_kwargs)  # type: ignore[attr-defined]
        return [values[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether the vector environment or its environments have the attribute."""
        return hasattr(self.venv, attr_name) or super().has_attr(attr_name)

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's Monitor, whose ``info["episode"]`` this adapter writes."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _by_row(infos: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Each environment's info, out of Gymnasium's arrays with masks (``VectorEnv._add_info``)."""
    rows: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None or isinstance(mask, dict):
            continue
        if isinstance(values, dict):
            values = _by_row(values, n)
        for i in np.flatnonzero(mask).tolist():
            value = values[i]
            rows[i][name] = value.item() if isinstance(value, np.generic) else value
    return rows
