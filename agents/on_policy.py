"""What the on-policy algorithms share: rollouts by a language model, and the KL to its reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from textgym.adapters import AdaptedModel
from textgym.agents.interface import LanguageModelAgent, is_unscored
from textgym.agents.kl import KL_ESTIMATORS, AdaptiveKL, KLCoefficient
from textgym.agents.language_model import (
    CausalLM,
    ModelLike,
    adapters_disabled,
    frozen_copy,
    portable_model,
)
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.segments import TokenRolloutBuffer
from textgym.agents.seq2seq import Seq2SeqLMPolicy
from textgym.errors import ConfigurationError

__all__ = ["LanguageModelRollouts"]


class LanguageModelRollouts(LanguageModelAgent, OnPolicyAlgorithm):
    """SB3's on-policy rollouts, with a language model decoding incrementally into a buffer of token streams.

    To be inherited before an algorithm of SB3's, or alone by one that has its own ``train``.

    Args:
        *args: The algorithm's.
        kl_coef: The weight of the per-token KL to the reference: a number, a schedule, or
            :class:`~textgym.agents.AdaptiveKL`.
        ref_model: The reference: a name, a path or a model; None: the policy's model as it is at the start. That is a
            frozen copy (of an adapter alone, where the model came with one), or, with a new adapter, the same model
            with the adapter switched off.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"`` (Schulman 2020).
        n_episodes: A rollout of this many whole episodes in place of ``n_steps``.
        micro_batch_size: Tokens of the agent whose activations are held at a time.
        **kwargs: The algorithm's.

    Raises:
        ConfigurationError: An option of language-model policies is given with another policy, or has a wrong value.
    """

    # what they are wherever this class's own code runs, which is for language models only
    policy: CausalLMPolicy
    rollout_buffer: TokenRolloutBuffer

    kl_in_reward: ClassVar[bool] = True
    """Whether the KL is subtracted from the reward; if not, the algorithm's loss has it."""

    def __init__(
        self,
        *args: Any,
        kl_coef: KLCoefficient = 0.0,
        ref_model: ModelLike | torch.nn.Module | None = None,
        kl_estimator: str = "k1",
        n_episodes: int | None = None,
        micro_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.ref_model, self.n_episodes = ref_model, n_episodes
        self.micro_batch_size = micro_batch_size
        self.reference: CausalLM | None = None
        self.rollout_kl_coef = 0.0  # that of the last rollout
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.is_language_model and self.rollout_buffer_class is None:
            self.rollout_buffer_class = TokenRolloutBuffer
        super()._setup_model()
        if not self.is_language_model:
            return
        self._take_tokenizer()
        if self.uses_reference:
            self.reference = self._make_reference()
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.rollout_buffer.before_advantages = self._finish_rollout
            self.rollout_buffer.micro_batch_size = self.micro_batch_size

    def set_env(self, env: GymEnv | gym.vector.VectorEnv, force_reset: bool = True) -> None:
        """SB3's; the environments must suit the algorithm."""
        super().set_env(env, force_reset)
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ConfigurationError(
                f"kl_estimator must be one of {', '.join(map(repr, KL_ESTIMATORS))}, not {self.kl_estimator!r}."
            )
        if not self.kl_in_reward and self.kl_estimator == "k1":
            raise ConfigurationError(
                f"kl_estimator='k1' in a loss penalises nothing, since its gradient is zero in expectation; "
                f"{type(self).__name__} takes 'k2' or 'k3'."
            )
        is_number = isinstance(self.kl_coef, (int, float))
        if not (self.kl_coef >= 0 if is_number else callable(self.kl_coef)):  # type: ignore[operator]
            raise ConfigurationError(f"kl_coef is a number from 0 up, a schedule or AdaptiveKL, not {self.kl_coef!r}.")
        if self.n_episodes is not None and not (isinstance(self.n_episodes, int) and self.n_episodes >= 1):
            raise ConfigurationError(f"n_episodes is a whole number from 1 up, not {self.n_episodes!r}.")
        if hasattr(self.policy_class, "action_values"):
            raise ConfigurationError(f"{self.policy_class.__name__} has action values, which DQN is for.")
        if self.micro_batch_size is not None and not (
            isinstance(self.micro_batch_size, int) and self.micro_batch_size >= 1
        ):
            raise ConfigurationError(f"micro_batch_size is a whole number from 1 up, not {self.micro_batch_size!r}.")
        extended = self.uses_reference or self.n_episodes is not None or self.micro_batch_size is not None
        plain_buffer = self.rollout_buffer_class not in (None, TokenRolloutBuffer)
        if extended and (not self.is_language_model or plain_buffer):
            raise ConfigurationError(
                "kl_coef, ref_model, n_episodes and micro_batch_size are for language-model policies "
                "(policy='CausalLMPolicy' or 'Seq2SeqLMPolicy') with the default rollout buffer, not for "
                f"{self.policy_class.__name__}"
                + (f" with {self.rollout_buffer_class.__name__}." if plain_buffer else ".")  # type: ignore[union-attr]
            )

    # --------------------------------------------------------------- reference

    @property
    def uses_reference(self) -> bool:
        """Whether a reference model is held against the policy."""
        return self.ref_model is not None or not (isinstance(self.kl_coef, (int, float)) and self.kl_coef == 0)

    @property
    def _adapter_is_reference(self) -> bool:
        return self.ref_model is None and self.policy.started_without_adapter

    def _make_reference(self) -> CausalLM | None:
        if self._adapter_is_reference:
            return None
        given, own = self.ref_model, self.policy.model
        if isinstance(given, AdaptedModel) and given == portable_model(own):  # loaded: it can share the base model
            given = None
        source = own if given is None else self.policy.load_model(given)
        self.policy.check_fit(source, "the reference's")
        return frozen_copy(source).to(self.device)

    def current_kl_coef(self) -> float:
        """The coefficient at this point of the training."""
        if callable(self.kl_coef):
            return float(self.kl_coef(self._current_progress_remaining))
        return float(self.kl_coef)

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
            at_rollout_end=lambda: rollout_buffer.full and rollout_buffer.segments is None,
        ):
            return super().collect_rollouts(env, callback, rollout_buffer, steps)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """Tells the buffer, too, which scores failed."""
        if isinstance(self.rollout_buffer, TokenRolloutBuffer):
            self.rollout_buffer.mark_unscored([i for i, info in enumerate(infos) if is_unscored(info)])
        super()._update_info_buffer(infos, dones)

    def _finish_rollout(self) -> None:
        """Completes the log-probabilities of a finished rollout, and puts the KL into its rewards."""
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
        buffer.reference_log_probs[index] = reference.cpu().numpy()
        log_ratio = torch.as_tensor(buffer.log_probs[index] - buffer.reference_log_probs[index])
        kl = KL_ESTIMATORS[self.kl_estimator](log_ratio).numpy()
        coefficient = self.current_kl_coef()
        if self.kl_in_reward:
            buffer.rewards[index] -= coefficient * kl
        self.logger.record("rollout/kl", float(kl.mean()))
        self.logger.record("rollout/kl_coef", coefficient)
        self.rollout_kl_coef = coefficient
        if isinstance(self.kl_coef, AdaptiveKL):
            self.kl_coef.update(float(kl.sum()), buffer.n_begun)

    # ---------------------------------------------------------------- training

    def has_something_to_learn(self) -> bool:
        """Whether anything in the rollout could be scored; readies the policy for the update."""
        if not isinstance(self.rollout_buffer, TokenRolloutBuffer):
            return True
        self.policy.entropy_gradient = self.ent_coef != 0
        if self.rollout_buffer.n_trainable == 0:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        return self.rollout_buffer.n_trainable > 0

    def train(self) -> None:
        """The algorithm's update; skipped where nothing in the rollout could be scored."""
        if not self.has_something_to_learn():
            return
        super().train()
        buffer = self.rollout_buffer
        if isinstance(buffer, TokenRolloutBuffer):  # SB3's is over the steps that are not trained on too
            trained_on = buffer.all_indices()
            explained = explained_variance(buffer.values[trained_on], buffer.returns[trained_on])
            self.logger.record("train/explained_variance", explained)

    # ------------------------------------------------------------------ saving

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return (state_dicts if self.reference is None else [*state_dicts, "reference"]), variables

    def _portable_settings(self) -> dict[str, Any]:
        reference = {} if self.reference is None else {"ref_model": portable_model(self.reference)}
        return {**super()._portable_settings(), **reference}


def with_language_models(aliases: Mapping[str, type[BasePolicy]]) -> dict[str, type[BasePolicy]]:
    """An algorithm's names of policies, and ours."""
    return {**aliases, "CausalLMPolicy": CausalLMPolicy, "Seq2SeqLMPolicy": Seq2SeqLMPolicy}


class _UntilEpisodes:
    """Stands in for SB3's ``n_rollout_steps``: ``n_steps < self`` holds while an environment owes an episode."""

    def __init__(self, agent: LanguageModelRollouts, buffer: TokenRolloutBuffer, n_episodes: int) -> None:
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
