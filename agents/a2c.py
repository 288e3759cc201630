"""Advantage actor-critic: Stable-Baselines3's, with language-model policies at language-model speed."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import stable_baselines3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from textgym.agents.kl import KLCoefficient
from textgym.agents.language_model import ModelLike
from textgym.agents.on_policy import LanguageModelRollouts, with_causal_lm

__all__ = ["A2C"]


class A2C(LanguageModelRollouts, stable_baselines3.A2C):
    """SB3's A2C, for language models too: one step of the optimizer a rollout, over all of its tokens.

    With a policy that is no language model it is ``stable_baselines3.A2C``. The first arguments are SB3's, with SB3's
    defaults, which suit small networks: give a language model ``use_rms_prop=False``, a low learning rate,
    ``gamma=1.0``, and ``n_episodes``. The last four are those of :class:`textgym.agents.PPO`.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016
    (https://arxiv.org/abs/1602.01783).

    Args:
        kl_coef: The weight of the per-token KL to the reference, which is subtracted from the reward.
        ref_model: The reference; None: the policy's model as it is at the start.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        n_episodes: A rollout of this many whole episodes in place of ``n_steps``.

    Raises:
        ConfigurationError: An option of language-model policies is given with another policy, or has a wrong value.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = with_causal_lm(stable_baselines3.A2C.policy_aliases)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | gym.vector.VectorEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = False,
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
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rms_prop_eps=rms_prop_eps,
            use_rms_prop=use_rms_prop,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
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
        )
