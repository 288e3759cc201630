"""Advantage actor-critic: Stable-Baselines3's, with language-model policies at language-model speed."""

from __future__ import annotations

from typing import ClassVar

import stable_baselines3
from stable_baselines3.common.policies import BasePolicy

from textgym.agents.on_policy import LanguageModelRollouts, with_language_models

__all__ = ["A2C"]


class A2C(LanguageModelRollouts, stable_baselines3.A2C):
    """SB3's A2C, for language models too: one step of the optimizer a rollout, over all of its tokens.

    With a policy that is no language model it is ``stable_baselines3.A2C``. The arguments are SB3's, with SB3's
    defaults, which suit small networks: give a language model ``use_rms_prop=False``, a low learning rate,
    ``gamma=1.0``, and ``n_episodes``. Beside them there are five of
    :class:`textgym.agents.PPO`'s, by name.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016
    (https://arxiv.org/abs/1602.01783).

    Args:
        kl_coef: The weight of the per-token KL to the reference, which is subtracted from the reward.
        ref_model: The reference; None: the policy's model as it is at the start.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        n_episodes: A rollout of this many whole episodes in place of ``n_steps``.
        micro_batch_size: Tokens of the agent whose activations are held at a time, as in PPO.

    Raises:
        ConfigurationError: An option of language-model policies is given with another policy, or has a wrong value.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = with_language_models(stable_baselines3.A2C.policy_aliases)
