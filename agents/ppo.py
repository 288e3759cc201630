"""Proximal policy optimisation: Stable-Baselines3's, with language-model policies at language-model speed."""

from __future__ import annotations

import io
import pathlib
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from textgym.agents.kl import KL_ESTIMATORS, AdaptiveKL, KLCoefficient
from textgym.agents.language_model import (
    CausalLM,
    ModelLike,
    adapters_disabled,
    frozen_copy,
    load_causal_lm,
)
from textgym.agents.policies import CausalLMPolicy, portable_model
from textgym.agents.segments import TokenRolloutBuffer
from textgym.errors import CheckpointError, ConfigurationError

__all__ = ["PPO"]

SelfPPO = TypeVar("SelfPPO", bound="PPO")


class PPO(stable_baselines3.PPO):
    """SB3's PPO, for language models too.

    With a policy that is no language model it is ``stable_baselines3.PPO``. With ``"CausalLMPolicy"`` rollout
    collection and update are still SB3's own code, over a policy that decodes incrementally and a buffer that holds
    each environment's tokens once; the numbers are those of SB3, to rounding.

    The first arguments are SB3's, with SB3's defaults (which suit small networks: give a language model a learning
    rate around 1e-5, ``gamma=1.0``, ``n_epochs`` of 1 to 4, and a ``kl_coef``). ``env`` may also be a vector
    environment of textgym's, an ``EnvSpec`` id or any SB3 ``VecEnv``. ``batch_size`` counts tokens of the agent.

    Args:
        kl_coef: The weight of the per-token KL to the reference, which is subtracted from the reward: a number, a
            schedule, or :class:`~textgym.agents.AdaptiveKL`.
        ref_model: The reference: a name, a path or a model; None: a frozen copy of the policy's model as it is at the
            start, or, with an adapter, the same model with the adapter switched off.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"`` (Schulman 2020).
        n_episodes: A rollout of this many whole episodes, shared evenly among the environments, which are reset at its
            start; in place of ``n_steps``. An environment that is done before the others plays on, and what it plays
            is not trained on.

    Raises:
        ConfigurationError: An option of language-model policies is given with another policy, or has a wrong value.
    """

    # what they are wherever this class's own code runs, which is for language models only
    policy: CausalLMPolicy
    rollout_buffer: TokenRolloutBuffer

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "CausalLMPolicy": CausalLMPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | gym.vector.VectorEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_coef: KLCoefficient = 0.0,
        ref_model: ModelLike | torch.nn.Module | None = None,
        kl_estimator: str = "k1",
        n_episodes: int | None = None,
    ) -> None:
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.ref_model, self.n_episodes = ref_model, n_episodes
        self.reference: CausalLM | None = None
        with warnings.catch_warnings():
            if n_episodes is not None:  # then n_steps, which SB3 wants the minibatches to divide, counts for nothing
                warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            super().__init__(
                policy,
                env,  # type: ignore[arg-type]
                learning_rate=learning_rate,
                n_steps=n_steps,
                batch_size=batch_size,
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=clip_range,
                clip_range_vf=clip_range_vf,
                normalize_advantage=normalize_advantage,
                ent_coef=ent_coef,
                vf_coef=vf_coef,
                max_grad_norm=max_grad_norm,
                use_sde=use_sde,
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                target_kl=target_kl,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=_init_setup_model,
            )

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

    # ------------------------------------------------------------------- setup

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.is_language_model and self.rollout_buffer_class is None:
            self.rollout_buffer_class = TokenRolloutBuffer
        super()._setup_model()
        if not self.is_language_model:
            return
        self.policy.tokenizer = self._environment_tokenizer()
        if self.uses_reference:
            self.reference = self._make_reference()
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.rollout_buffer.before_advantages = self._finish_rollout

    def _check_arguments(self) -> None:
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ConfigurationError(
                f"kl_estimator must be one of {', '.join(map(repr, KL_ESTIMATORS))}, not {self.kl_estimator!r}."
            )
        if isinstance(self.kl_coef, (int, float)) and not self.kl_coef >= 0:
            raise ConfigurationError(f"kl_coef must not be negative, but is {self.kl_coef}.")
        if self.n_episodes is not None and self.n_episodes < 1:
            raise ConfigurationError(f"n_episodes must be at least 1, but is {self.n_episodes}.")
        extended = self.uses_reference or self.n_episodes is not None
        plain_buffer = self.rollout_buffer_class not in (None, TokenRolloutBuffer)
        if extended and (not self.is_language_model or plain_buffer):
            raise ConfigurationError(
                "kl_coef, ref_model and n_episodes are for language-model policies (policy='CausalLMPolicy') with the "
                f"default rollout buffer, not for {self.policy_class.__name__}"
                + (f" with {self.rollout_buffer_class.__name__}." if plain_buffer else ".")  # type: ignore[union-attr]
            )

    @property
    def uses_reference(self) -> bool:
        """Whether a reference model is held against the policy."""
        return self.ref_model is not None or not (isinstance(self.kl_coef, (int, float)) and self.kl_coef == 0)

    @property
    def _adapter_is_reference(self) -> bool:
        return self.ref_model is None and self.policy.uses_adapter

    def _make_reference(self) -> CausalLM | None:
        if self._adapter_is_reference:
            return None
        source = self.policy.model if self.ref_model is None else load_causal_lm(self.ref_model)
        return frozen_copy(source).to(self.device)

    def _environment_tokenizer(self) -> Any:
        if self.env is None or not self.env.has_attr("tokenizer"):
            return None
        return self.env.get_attr("tokenizer", indices=0)[0]

    # ----------------------------------------------------------------- rollout

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """SB3's, with a language model decoding incrementally."""
        if not isinstance(rollout_buffer, TokenRolloutBuffer):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        steps: Any = n_rollout_steps
        if self.n_episodes is not None:
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
            steps = _UntilEpisodes(self, rollout_buffer, self.n_episodes)
        with self.policy.incremental_decoding(
            env.num_envs,
            before_forward=lambda: rollout_buffer.see(self._last_obs, self._last_episode_starts),  # type: ignore[arg-type]
            at_rollout_end=lambda: rollout_buffer.full,
        ):
            return super().collect_rollouts(env, callback, rollout_buffer, steps)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """Keeps unscored episodes out of the running means, and tells the buffer."""
        unscored = [i for i, info in enumerate(infos) if info.get("score_status", "ok") != "ok"]
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.rollout_buffer.mark_unscored(unscored)
        kept = [
            {k: v for k, v in info.items() if k != "episode"} if i in unscored else info for i, info in enumerate(infos)
        ]
        super()._update_info_buffer(kept if unscored else infos, dones)

    def _finish_rollout(self) -> None:
        """Puts the KL into the rewards of a finished rollout, and logs it."""
        buffer = self.rollout_buffer
        self.logger.record("rollout/unscored", buffer.n_unscored)
        if not buffer.segments:
            return
        samples, index = buffer.samples(), buffer.all_indices()
        if self.policy.recomputes_log_probs:
            with torch.no_grad():
                _, log_probs, _ = self.policy.evaluate_actions(samples.observations, samples.actions)
            buffer.log_probs[index] = log_probs.cpu().numpy()
        if not self.uses_reference:
            return
        with adapters_disabled(self.policy.model) if self._adapter_is_reference else _given(self.reference) as model:
            reference = self.policy.reference_log_probs(model, samples.observations, samples.actions)
        kl = KL_ESTIMATORS[self.kl_estimator](buffer.log_probs[index] - reference.cpu().numpy())
        coefficient = self._current_kl_coef()
        buffer.rewards[index] -= coefficient * kl
        self.logger.record("rollout/kl", float(kl.mean()))
        self.logger.record("rollout/kl_coef", coefficient)
        if isinstance(self.kl_coef, AdaptiveKL):
            self.kl_coef.update(float(kl.sum()) / len(buffer.segments))

    def _current_kl_coef(self) -> float:
        if callable(self.kl_coef):
            return float(self.kl_coef(self._current_progress_remaining))
        return float(self.kl_coef)

    # ---------------------------------------------------------------- training

    def train(self) -> None:
        """SB3's update; skipped where nothing in the rollout could be scored."""
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.policy.entropy_gradient = self.ent_coef != 0
            if self.rollout_buffer.n_trainable == 0:
                self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
                return
        super().train()

    # ---------------------------------------------------------- saving, loading

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return (state_dicts if self.reference is None else [*state_dicts, "reference"]), variables

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes SB3's zip: settings, weights, optimizer, and the weights of the original reference.

        A language model is stored as its configuration and weights, not as a pickled module. To hand an agent on, use
        ``agent.policy.save_pretrained(folder)``.
        """
        settings = self.policy_kwargs, self.ref_model
        if self.is_language_model:
            self.policy_kwargs = {**self.policy_kwargs, **self.policy.rebuilding_kwargs()}
            if self.reference is not None:
                self.ref_model = portable_model(self.reference)
        try:
            super().save(path, exclude, include)
        finally:
            self.policy_kwargs, self.ref_model = settings

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfPPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | gym.vector.VectorEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPPO:
        """Reads what :meth:`save` wrote.

        SB3's zip carries pickles, which run code when they are read: load only files of your own.

        Raises:
            CheckpointError: The file is cut off, or no agent of this kind.
        """
        _check_zip(path)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)  # type: ignore[arg-type]


class _UntilEpisodes:
    """Stands in for SB3's ``n_rollout_steps``: ``n_steps < self`` holds while an environment owes an episode."""

    def __init__(self, agent: PPO, buffer: TokenRolloutBuffer, n_episodes: int) -> None:
        self.agent, self.buffer = agent, buffer
        self.share = n_episodes // buffer.n_envs + (np.arange(buffer.n_envs) < n_episodes % buffer.n_envs)

    def __gt__(self, n_steps: int) -> bool:
        if n_steps == 0:
            self.buffer.quota = self.share.astype(np.int64)
            return True
        owes = self.buffer.owes_episodes(np.asarray(self.agent._last_episode_starts))
        self.buffer.full = not owes
        return owes


@contextmanager
def _given(model: CausalLM | None) -> Iterator[CausalLM]:
    if model is None:
        raise ConfigurationError("the agent has no reference model, and its kl_coef asks for one.")
    yield model


def _check_zip(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """Raises CheckpointError where the file exists and is no whole zip of an agent's."""
    if isinstance(path, (str, pathlib.Path)):
        found = [p for p in (pathlib.Path(path), pathlib.Path(f"{path}.zip")) if p.is_file()]
        if not found:
            return  # SB3 says which file is missing
        source: Any = found[0]
    else:
        source = path
    advice = "it was cut off while it was written, or is no agent saved by PPO.save; save it again."
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
