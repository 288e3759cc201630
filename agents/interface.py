"""Stable-Baselines3's interface for language-model policies: environments taken, agents saved and loaded."""

from __future__ import annotations

import io
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from textgym.agents.policies import CausalLMPolicy
from textgym.errors import CheckpointError

__all__ = ["LanguageModelAgent", "is_unscored"]

SelfAgent = TypeVar("SelfAgent", bound="LanguageModelAgent")


class LanguageModelAgent(BaseAlgorithm):
    """What any algorithm of SB3's needs to have a language model for a policy; to be inherited beside it."""

    @property
    def is_language_model(self) -> bool:
        """Whether the policy is a language model's; all of textgym's additions depend on it."""
        return issubclass(self.policy_class, CausalLMPolicy)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv):
            from textgym import sb3_vec_env

            env = sb3_vec_env(env)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _environment_attribute(self, name: str) -> Any:
        """An attribute that the environments share; None where they have none of this name, or there are none."""
        if self.env is None or not self.env.has_attr(name):
            return None
        return self.env.get_attr(name, indices=0)[0]

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """SB3's, with unscored episodes kept out of the running means."""
        kept = [{k: v for k, v in info.items() if k != "episode"} if is_unscored(info) else info for info in infos]
        super()._update_info_buffer(kept, dones)

    def _portable_settings(self) -> dict[str, Any]:
        """Attributes that hold a model, as they are to be saved."""
        policy: Any = self.policy
        return {"policy_kwargs": {**self.policy_kwargs, **policy.rebuilding_kwargs()}}

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes SB3's zip: settings, weights, optimizer and, where there is one, the original reference's weights.

        A language model is stored as its configuration and weights, not as a pickled module. To hand an agent on, use
        ``agent.policy.save_pretrained(folder)``.
        """
        portable = self._portable_settings() if self.is_language_model else {}
        own = {name: getattr(self, name) for name in portable}
        try:
            vars(self).update(portable)
            super().save(path, exclude, include)
        finally:
            vars(self).update(own)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfAgent],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | gym.vector.VectorEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAgent:
        """Reads what :meth:`save` wrote.

        SB3's zip carries pickles, which run code when they are read: load only files of your own.

        Raises:
            CheckpointError: The file is cut off, or no agent of this kind.
        """
        _check_zip(path)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)  # type: ignore[arg-type]


def is_unscored(info: Mapping[str, Any]) -> bool:
    """Whether a step's info says that its reward could not be had."""
    return info.get("score_status", "ok") != "ok"


def _check_zip(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """Raises CheckpointError where the file exists and is no whole zip of an agent's."""
    if isinstance(path, (str, pathlib.Path)):
        found = [p for p in (pathlib.Path(path), pathlib.Path(f"{path}.zip")) if p.is_file()]
        if not found:
            return  # SB3 says which file is missing
        source: Any = found[0]
    else:
        source = path
    advice = "it was cut off while it was written, or is no saved agent; save it again."
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
            missing = {"data", "policy.pth"} - set(archive.namelist())
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"cannot read the agent {path}: {error}; {advice}") from error
    finally:
        if source is path and hasattr(path, "seek"):
            path.seek(0)
    if broken or missing:
        what = f"{broken} is damaged" if broken else f"it has no {', '.join(sorted(missing))}"
        raise CheckpointError(f"cannot read the agent {path}: {what}; {advice}")
