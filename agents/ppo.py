"""Proximal policy optimisation: Stable-Baselines3's, with language-model policies at language-model speed."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import gymnasium as gym
import stable_baselines3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from textgym.agents.kl import KLCoefficient
from textgym.agents.language_model import ModelLike
from textgym.agents.on_policy import LanguageModelRollouts, with_language_models

__all__ = ["PPO"]


class PPO(LanguageModelRollouts, stable_baselines3.PPO):
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
        ref_model: The reference: a name, a path or a model; None: the policy's model as it is at the start. That is a
            frozen copy (of an adapter alone, where the model came with one), or, with a new adapter, the same model
            with the adapter switched off.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"`` (Schulman 2020).
        n_episodes: A rollout of this many whole episodes, shared evenly among the environments, which are reset at its
            start; in place of ``n_steps``. An environment that is done before the others plays on, and what it plays
            is not trained on.
        micro_batch_size: At most so many tokens of the agent, but at least one episode, have their activations in
            memory at a time: the gradients are those of the whole minibatch, to rounding, for the price of another
            forward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
            https://arxiv.org/abs/1604.06174). None: a whole minibatch.

    Raises:
        ConfigurationError: An option of language-model policies is given with another policy, or has a wrong value.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = with_language_models(stable_baselines3.PPO.policy_aliases)

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
        micro_batch_size: int | None = None,
    ) -> None:
        with warnings.catch_warnings():
            if n_episodes is not None:  # then n_steps, which SB3 wants the minibatches to divide, counts for nothing
                warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            super().__init__(
                policy,
                env,
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
                kl_coef=kl_coef,
                ref_model=ref_model,
                kl_estimator=kl_estimator,
                n_episodes=n_episodes,
                micro_batch_size=micro_batch_size,
            )
