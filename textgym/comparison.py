"""Comparing agents on the same episodes: intervals clustered by sample, paired differences, normalised scores.

Shapes: n episodes, C clusters (samples). Episodes about the same sample are not independent, so samples are resampled,
each with all of its episodes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import fmean

import numpy as np

from textgym.errors import ConfigurationError
from textgym.evaluation import CONFIDENCE, RESAMPLES, Estimate

__all__ = ["clustered_mean", "normalised", "paired_difference"]

PERMUTATIONS = 10_000
BLOCK = 1_000  # permutations held at a time


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """A mean over episodes with its 95% percentile interval from a bootstrap of whole clusters.

    Source: Field and Welsh, "Bootstrapping clustered data", 2007, the cluster bootstrap; for language models, Miller,
    "Adding Error Bars to Evals", 2024, section 2.2 (https://arxiv.org/abs/2411.00640).

    Args:
        values: (n,), each episode's.
        clusters: (n,), the sample that each episode is about.
        seed: Of the resampling.

    Raises:
        ConfigurationError: There are no episodes, or not one cluster for each.
    """
    sums, sizes = _by_cluster(values, clusters)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)  # how often each one comes
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return {"value": fmean(values), "low": float(low), "high": float(high), "n": len(values)}


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> Estimate:
    """By how much the first agent's episodes are worth more than the second's, episode by episode.

    ``"p"`` is the two-sided p-value of a permutation test: the sign of each cluster's difference is flipped at random,
    which under the hypothesis that the agents are alike changes nothing (Phipson and Smyth, "Permutation p-values
    should never be zero", 2010). The interval is that of :func:`clustered_mean`.

    Args:
        first: (n,).
        second: (n,), of the same episodes in the same order.
        clusters: (n,), the sample that each episode is about.
        seed: Of the resampling.

    Raises:
        ConfigurationError: The agents' episodes are not as many, or there are none.
    """
    if len(first) != len(second):
        raise ConfigurationError(f"paired agents have the same episodes, not {len(first)} and {len(second)}.")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    estimate = clustered_mean(differences, clusters, seed=seed)
    sums, _ = _by_cluster(differences, clusters)
    rng = np.random.default_rng(seed)
    as_far, rounding = 0, 1e-12 * np.abs(sums).sum()
    for _ in range(PERMUTATIONS // BLOCK):
        signs = 2 * rng.integers(2, size=(BLOCK, len(sums))) - 1
        as_far += int((np.abs(signs @ sums) >= abs(sums.sum()) - rounding).sum())
    return {**estimate, "p": (1 + as_far) / (1 + PERMUTATIONS)}


def normalised(value: float, random: float, reference: float) -> float:
    """A score on the scale on which the random agent's is 0 and the reference's is 1; NaN where that is no better.

    Source: Mnih et al., "Human-level control through deep reinforcement learning", 2015, the human-normalised score.
    """
    return (value - random) / (reference - random) if reference > random else float("nan")


def _by_cluster(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values of each cluster, (C,) each, in the order in which they first come."""
    if not len(values) or len(values) != len(clusters):
        raise ConfigurationError(f"{len(values)} values for {len(clusters)} clusters; there is one for each, and some.")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    return np.bincount(index, values), np.bincount(index)
