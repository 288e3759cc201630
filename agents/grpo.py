"""GRPO: group-relative policy optimisation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from textgym.agents.kl import KL_ESTIMATORS, KLCoefficient
from textgym.agents.objectives import clipped_surrogate, group_normalised, sequence_mean
from textgym.agents.rloo import RLOO
from textgym.agents.segments import SegmentSamples
from textgym.errors import ConfigurationError

__all__ = ["GRPO"]


class GRPO(RLOO):
    """PPO's clipped objective with advantages relative to the group, and without a critic.

    A reply's advantage is its return less the mean of its group, over the group's standard deviation. The KL to the
    reference is part of the loss and not of the reward. Every reply counts the same, whatever its length.

    Source: Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", 2024,
    equation 3 (https://arxiv.org/abs/2402.03300).

    Args:
        *args: As in :class:`textgym.agents.REINFORCE`.
        n_epochs: Passes over a rollout.
        clip_range: Of the ratio; a number or a schedule.
        kl_coef: The weight of the KL in the loss.
        kl_estimator: ``"k3"``, the paper's, or ``"k2"``, whose gradient is the KL's own; that of ``"k1"`` is zero in
            expectation.
        **kwargs: As in :class:`textgym.agents.REINFORCE`.

    Raises:
        ConfigurationError: The environments are not in groups, or an argument has a wrong value.
    """

    kl_in_reward: ClassVar[bool] = False

    def __init__(
        self,
        *args: Any,
        n_epochs: int = 1,
        clip_range: float | Schedule = 0.2,
        kl_coef: KLCoefficient = 0.04,
        kl_estimator: str = "k3",
        **kwargs: Any,
    ) -> None:
        if n_epochs < 1:
            raise ConfigurationError(f"n_epochs is at least 1, not {n_epochs}.")
        self.n_epochs, self.clip_range = n_epochs, clip_range
        super().__init__(*args, kl_coef=kl_coef, kl_estimator=kl_estimator, **kwargs)

    def compare(self, returns: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Advantages ``(S,)`` of returns ``(S,)``; equal groups ``(S,)`` mean the same prompt."""
        return group_normalised(returns, groups)

    def loss(self, samples: SegmentSamples, log_prob: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative of the paper's equation 3 on a minibatch, and figures to log."""
        clip_range = self.clip_range
        if callable(clip_range):
            clip_range = clip_range(self._current_progress_remaining)
        objective = clipped_surrogate(log_prob, samples.old_log_prob, samples.advantages, clip_range)
        ratio = torch.exp(log_prob.detach() - samples.old_log_prob)
        figures = {
            "policy_gradient_loss": -sequence_mean(objective, samples.sequences),
            "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
            "approx_kl": (ratio - 1 - ratio.log()).mean(),
        }
        loss = figures["policy_gradient_loss"]
        if self.uses_reference:
            kl = KL_ESTIMATORS[self.kl_estimator](log_prob - samples.reference_log_prob)
            figures["kl_loss"] = sequence_mean(kl, samples.sequences)
            loss = loss + self.rollout_kl_coef * figures["kl_loss"]
        return loss, figures
