"""The KL penalty to a reference model: its estimators and its coefficient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textgym.errors import ConfigurationError

__all__ = ["KL_ESTIMATORS", "AdaptiveKL", "KLCoefficient"]

KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: 0.5 * log_ratio**2,
    "k3": lambda log_ratio: torch.expm1(-log_ratio) + log_ratio,
}
"""Per-token estimates of KL(policy || reference) from ``log policy - log reference`` of a sampled token.

Source: Schulman, "Approximating KL Divergence", 2020, http://joschu.net/blog/kl-approx.html.
"""


@dataclass
class AdaptiveKL:
    """A KL coefficient that is steered towards a target.

    After each rollout ``coef *= 1 + rate * clip(kl / target - 1, -0.2, 0.2)``.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019, section 2.2
    (https://arxiv.org/abs/1909.08593), with ``rate`` K_beta = 0.1.

    Args:
        initial: The coefficient of the first rollout.
        target: The wanted KL of a whole episode, in nats.
        rate: How fast the coefficient follows.
    """

    initial: float = 0.05
    target: float = 6.0
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not (self.initial > 0 and self.target > 0 and self.rate > 0):
            raise ConfigurationError(f"AdaptiveKL takes positive numbers, not {self}.")
        self.value = self.initial
        self.kl_since = 0.0  # the last change

    def __call__(self, progress_remaining: float) -> float:
        """The current coefficient, whatever the progress."""
        return self.value

    def update(self, kl: float, n_episodes: int) -> None:
        """Moves the coefficient after a rollout.

        Args:
            kl: Of all its tokens together, in nats.
            n_episodes: How many began in it; where none did, the KL counts for the next rollout.
        """
        self.kl_since += kl
        if n_episodes:
            error = float(np.clip(self.kl_since / n_episodes / self.target - 1, -0.2, 0.2))
            self.value *= 1 + self.rate * error
            self.kl_since = 0.0


KLCoefficient = float | Callable[[float], float] | AdaptiveKL
"""A number, a schedule of SB3's form (called with the progress remaining, 1 to 0), or :class:`AdaptiveKL`."""
