"""The mathematics of the algorithms: pure functions of arrays, each with its source.

Shapes: N tokens, S sequences (episodes), T steps of the longest, B pairs or rankings. What is computed of a finished
rollout takes and gives NumPy arrays; what is differentiated takes and gives tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "clipped_surrogate",
    "dpo_loss",
    "group_normalised",
    "leave_one_out",
    "leave_one_out_by_step",
    "plackett_luce_loss",
    "rewards_to_go",
    "sequence_mean",
]


# ------------------------------------------------------------- of a rollout


def rewards_to_go(rewards: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """What is still earned from each step on, ``G_t = r_t + gamma * G_{t+1}``, ``G_T = 0``.

    Args:
        rewards: ``(T,)``, r_0 to r_{T-1} of one whole episode.
        gamma: The discount of a step.

    Returns:
        ``(T,)`` float64, G_0 to G_{T-1}.
    """
    to_go = np.zeros(len(rewards) + 1)
    for step in range(len(rewards) - 1, -1, -1):
        to_go[step] = rewards[step] + gamma * to_go[step + 1]
    return to_go[:-1]


def leave_one_out_by_step(to_go: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each episode's rewards-to-go less the mean of the others' at the same step: a baseline that needs no critic.

    Without the episode itself the baseline does not depend on its actions, so that the gradient stays unbiased
    (Williams, "Simple statistical gradient-following algorithms", 1992, section 5). An episode that is over has 0 to
    go; where no other one has come as far, the baseline is thus 0.

    Args:
        to_go: ``(T_s,)`` for each of the S episodes.

    Returns:
        The same shapes, float64; zeros where there is only one episode.
    """
    if len(to_go) < 2:
        return [np.zeros(len(values)) for values in to_go]
    total = np.zeros(max(len(values) for values in to_go))
    for values in to_go:
        total[: len(values)] += values
    return [values - (total[: len(values)] - values) / (len(to_go) - 1) for values in to_go]


def leave_one_out(returns: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each return less the mean of the others in its group.

    Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
    in LLMs", 2024, section 2.2 (https://arxiv.org/abs/2402.14740); Kool et al., 2019.

    Args:
        returns: ``(S,)``, each reply's.
        groups: ``(S,)`` whole numbers, equal for replies to the same prompt.

    Returns:
        ``(S,)`` float64; 0 for a reply that is alone.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    mean = np.bincount(group, returns) / size
    n = size[group]
    return np.where(n > 1, n / np.maximum(n - 1, 1) * (returns - mean[group]), 0.0)


def group_normalised(returns: np.ndarray, groups: np.ndarray, eps: float = 1e-4) -> np.ndarray:
    """Each return less its group's mean, over its group's standard deviation.

    Source: Shao et al., "DeepSeekMath", 2024, section 4.1.2 (https://arxiv.org/abs/2402.03300). The standard deviation
    is that of a sample (n - 1), and ``eps`` is added to it, as in TRL.

    Args:
        returns: ``(S,)``, each reply's.
        groups: ``(S,)`` whole numbers, equal for replies to the same prompt.
        eps: Keeps a group whose replies are worth the same from a division by zero.

    Returns:
        ``(S,)`` float64; 0 for a reply that is alone.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    deviation = np.asarray(returns, dtype=float) - (np.bincount(group, returns) / size)[group]
    variance = np.bincount(group, deviation**2) / np.maximum(size - 1, 1)
    return deviation / (np.sqrt(variance)[group] + eps)


# ---------------------------------------------------------- to differentiate


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """``min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A)``, to be maximised.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, equation 7
    (https://arxiv.org/abs/1707.06347).

    Args:
        log_prob: (N,) of the actions under the policy.
        old_log_prob: (N,) under the policy that chose them.
        advantages: (N,).
        clip_range: How far the ratio may move from 1 and still pay.

    Returns:
        (N,).
    """
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """The mean over sequences of the mean over each one's tokens: long sequences count no more than short ones.

    Args:
        values: (N,).
        sequences: (N,) int64, the number of each token's sequence, each of 0 to S - 1 at least once.

    Returns:
        A scalar.
    """
    lengths = torch.bincount(sequences)
    return (values / lengths[sequences]).sum() / len(lengths)


def plackett_luce_loss(scores: Tensor) -> Tensor:
    """The mean negative log-likelihood of rankings, ``-sum_k (s_k - log sum_{l >= k} exp s_l)``.

    For two it is Bradley and Terry's ``-log sigmoid(s_0 - s_1)``.

    Source: Plackett, "The Analysis of Permutations", 1975; Bradley and Terry, 1952.

    Args:
        scores: (B, K), of each ranking's replies, the best first; minus infinity where there are less than K.

    Returns:
        A scalar.
    """
    there = scores > -torch.inf
    scores = scores.masked_fill(~there, torch.finfo(scores.dtype).min)  # minus infinity has no gradient
    of_the_rest = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return torch.where(there, of_the_rest - scores, 0.0).sum(-1).mean()


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """The loss and the implicit rewards' margins of direct preference optimisation.

    ``-log sigmoid(margin)`` where ``margin = beta * (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l))``.

    Source: Rafailov et al., "Direct Preference Optimization", 2023, equation 7 (https://arxiv.org/abs/2305.18290).

    Args:
        chosen: (B,) log-probabilities of the preferred replies under the policy.
        rejected: (B,) of the others.
        reference_chosen: (B,) under the reference.
        reference_rejected: (B,) under the reference.
        beta: How strongly the policy is held to the reference.

    Returns:
        The mean loss, a scalar, and the margins (B,).
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -torch.nn.functional.logsigmoid(margins).mean(), margins
