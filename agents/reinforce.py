"""REINFORCE: the policy gradient with a baseline and without a critic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from textgym.agents.kl import KLCoefficient
from textgym.agents.language_model import ModelLike
from textgym.agents.objectives import leave_one_out_by_step, rewards_to_go
from textgym.agents.on_policy import LanguageModelRollouts, with_language_models
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.segments import SegmentSamples
from textgym.errors import ConfigurationError

__all__ = ["REINFORCE"]


class REINFORCE(LanguageModelRollouts):
    """The policy gradient with SB3's interface, for language models.

    A rollout is ``n_episodes`` whole episodes. A token's advantage is what is earned from it on, less the mean of that
    over the other episodes of the rollout at the same step. The policy's value head is not trained, and an episode that
    a wrapper truncates, whose return only a critic could tell, is left out.

    Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    1992. The gradient is averaged over tokens.

    Args:
        policy: ``"CausalLMPolicy"``, ``"Seq2SeqLMPolicy"``, or a subclass.
        env: As in :class:`textgym.agents.PPO`.
        learning_rate: A number or a schedule.
        n_episodes: Of a rollout.
        batch_size: Tokens of the agent for a step of the optimizer; None: one step a rollout.
        gamma: The discount of a step.
        ent_coef: The weight of the entropy in the objective.
        max_grad_norm: What the gradient is clipped to.
        kl_coef, ref_model, kl_estimator, micro_batch_size: As in :class:`textgym.agents.PPO`.
        stats_window_size, tensorboard_log, policy_kwargs, verbose, seed, device: As in SB3.

    Raises:
        ConfigurationError: The policy is no language model's, or an option has a wrong value.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = with_language_models({})
    n_epochs = 1

    def __init__(
        self,
        policy: str | type[CausalLMPolicy],
        env: GymEnv | gym.vector.VectorEnv | str,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int | None = None,
        gamma: float = 1.0,
        ent_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        *,
        kl_coef: KLCoefficient = 0.0,
        ref_model: ModelLike | torch.nn.Module | None = None,
        kl_estimator: str = "k1",
        micro_batch_size: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.batch_size = batch_size
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=64,  # where the buffer begins; it grows with the episodes
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            kl_coef=kl_coef,
            ref_model=ref_model,
            kl_estimator=kl_estimator,
            n_episodes=n_episodes,
            micro_batch_size=micro_batch_size,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer.estimate_advantages = self.estimate_advantages

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.is_language_model:
            raise ConfigurationError(
                f"{type(self).__name__} is for language-model policies (policy='CausalLMPolicy' or 'Seq2SeqLMPolicy'), "
                f"not for {self.policy_class.__name__}."
            )
        if self.n_episodes is None:
            raise ConfigurationError(f"n_episodes=None: {type(self).__name__} learns from whole episodes.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigurationError(f"batch_size is at least 1, or None, not {self.batch_size}.")

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """A truncated episode has no return, and there is no critic to say what it would have been."""
        super()._update_info_buffer(infos, dones)
        truncated = [i for i, info in enumerate(infos) if info.get("TimeLimit.truncated", False)]
        self.rollout_buffer.mark_unscored(truncated)

    def estimate_advantages(self) -> Sequence[np.ndarray]:
        """The advantages of each episode's tokens, in the order of the buffer's segments."""
        return leave_one_out_by_step([rewards_to_go(rewards, self.gamma) for rewards in self.rollout_buffer.earned()])

    def loss(self, samples: SegmentSamples, log_prob: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised on a minibatch, and figures to log.

        Args:
            samples: N tokens.
            log_prob: (N,) under the current weights.
        """
        loss = -(samples.advantages * log_prob).mean()
        return loss, {"policy_gradient_loss": loss}

    def train(self) -> None:
        """One pass, or ``n_epochs``, over the rollout."""
        if not self.has_something_to_learn():
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        figures: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.n_epochs):
            for samples in self.rollout_buffer.get(self.batch_size):
                for name, value in self._step(samples).items():
                    figures[name].append(float(value.detach()))
        self._n_updates += self.n_epochs
        for name, values in figures.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _step(self, samples: SegmentSamples) -> dict[str, Tensor]:
        """One step of the optimizer; figures to log."""
        _, log_prob, entropy = self.policy.evaluate_actions(samples.observations, samples.actions)
        loss, figures = self.loss(samples, log_prob)
        if entropy is not None:
            figures["entropy_loss"] = -entropy.mean()
            loss = loss + self.ent_coef * figures["entropy_loss"]
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return {**figures, "loss": loss}
