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
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from textgym.adapters import base_name, fixed_weights
from textgym.agents.policies import CausalLMPolicy, names_of
from textgym.errors import CheckpointError, ConfigurationError

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

    def set_env(self, env: GymEnv | gym.vector.VectorEnv, force_reset: bool = True) -> None:
        """SB3's; a language model that was loaded without environments gets their tokenizer."""
        super().set_env(env, force_reset)  # type: ignore[arg-type]
        if self.is_language_model:
            self._take_tokenizer()

    def _take_tokenizer(self) -> None:
        policy: Any = self.policy
        policy.tokenizer = self._environment_attribute("tokenizer")

    def _portable_settings(self) -> dict[str, Any]:
        """Attributes that hold a model, as they are to be saved."""
        policy: Any = self.policy
        return {"policy_kwargs": {**self.policy_kwargs, **policy.rebuilding_kwargs()}}

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """SB3's, without what an adapter's base model has on disk; :meth:`set_parameters` takes it with and without."""
        parameters = super().get_parameters()
        for name, state in parameters.items():
            for key in self._of_base_model(name):
                del state[key]
        return parameters

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """SB3's; what an adapter's base model has on disk may be left out.

        Raises:
            ConfigurationError: The agent has a reference, and there are no weights for it.
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            _, given, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        if exact_match and "reference" in self._get_torch_save_params()[0] and "reference" not in given:
            raise ConfigurationError(
                "the saved agent has no reference model, which kl_coef and ref_model need. Load it without them, call "
                "agent.policy.save_pretrained(folder), and make a new agent with policy_kwargs={'model': folder}."
            )
        complete: Any = {}
        for name, state in given.items():
            of_base = self._of_base_model(name)
            own = getattr(self, name).state_dict() if of_base else {}
            complete[name] = {**{key: own[key] for key in of_base}, **state}
        super().set_parameters(complete, exact_match, device)

    def _of_base_model(self, name: str) -> set[str]:
        """The weights in the state of ``policy`` or ``reference`` that are on disk under a base model's name."""
        holder: Any = getattr(self, name, None)
        if not self.is_language_model or not isinstance(holder, torch.nn.Module):
            return set()
        model = holder.model if isinstance(holder, CausalLMPolicy) else holder
        return set() if base_name(model) is None else names_of(fixed_weights(model), holder)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes SB3's zip: settings, weights, optimizer and, where there is one, the original reference's weights.

        A language model is stored as its configuration and weights, not as a pickled module. Of a model with an adapter
        only the adapter is stored, with the base model's name or path, from which :meth:`load` takes the rest; a base
        model that was given as an object, which may be on no disk, is stored too. To hand an agent on, use
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
            CheckpointError: The file is cut off, or no agent's.
            ConfigurationError: The agent is of another kind, or an option does not suit it.
            ModelError: An adapter's base model is not where it was, or has other weights than it had.
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
