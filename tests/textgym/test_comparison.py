"""Intervals that cover, p-values that are uniform where nothing differs, and what they are on small cases."""

import math
from itertools import product

import numpy as np
import pytest

from textgym.comparison import clustered_mean, normalised, paired_difference
from textgym.errors import ConfigurationError


def clustered_data(rng, n_clusters=40, per_cluster=5, effect=0.0):
    """Values whose cluster decides most of them."""
    cluster_means = rng.normal(effect, 1.0, n_clusters)
    values = np.repeat(cluster_means, per_cluster) + rng.normal(0, 0.3, n_clusters * per_cluster)
    return values, np.repeat(np.arange(n_clusters), per_cluster)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered, ignoring_clusters = 0, 0
    for seed in range(300):
        values, clusters = clustered_data(rng)
        covered += includes_zero(clustered_mean(values, clusters, seed=seed))
        ignoring_clusters += includes_zero(clustered_mean(values, range(len(values)), seed=seed))
    assert 0.91 <= covered / 300 <= 0.98
    assert ignoring_clusters / 300 < 0.75


def includes_zero(estimate):
    return estimate["low"] <= 0 <= estimate["high"]


def test_the_value_is_the_mean_over_episodes_of_unequal_clusters():
    estimate = clustered_mean([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert estimate["value"] == 2.0
    assert (estimate["low"], estimate["high"]) == (1.0, 5.0)  # only one of the two clusters, at the ends
    assert estimate["n"] == 4


def test_the_p_value_is_the_share_of_sign_flips():
    first, second = [3.0, 2.0, 4.0, 1.0, 2.5], [1.0, 1.5, 1.0, 2.0, 2.0]
    differences = np.subtract(first, second)
    exact = np.mean([abs(np.dot(s, differences)) >= differences.sum() - 1e-9 for s in product((-1, 1), repeat=5)])
    assert paired_difference(first, second, range(5))["p"] == pytest.approx(exact, abs=0.02)
    assert paired_difference(first, second, range(5))["value"] == pytest.approx(differences.mean())


def test_flips_are_of_clusters_not_of_episodes():
    first, second, clusters = [1.0] * 20, [0.0] * 20, [0] * 10 + [1] * 10
    assert paired_difference(first, second, clusters)["p"] == pytest.approx(0.5, abs=0.02)  # two flips of four
    assert paired_difference(first, second, range(20))["p"] < 0.001


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(2)
    values = []
    for seed in range(60):
        values_, clusters = clustered_data(rng, 20, 3)
        values.append(paired_difference(values_, np.zeros(60), clusters, seed=seed)["p"])
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) < 0.1) < 0.25


def test_agents_that_are_the_same_do_not_differ():
    estimate = paired_difference([1.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0, 1, 2])
    assert (estimate["value"], estimate["low"], estimate["high"], estimate["p"]) == (0.0, 0.0, 0.0, 1.0)


def test_the_same_seed_gives_the_same_interval():
    values, clusters = clustered_data(np.random.default_rng(3))
    assert clustered_mean(values, clusters, seed=4) == clustered_mean(values, clusters, seed=4)
    assert clustered_mean(values, clusters, seed=4) != clustered_mean(values, clusters, seed=5)


def test_normalised_scores():
    assert normalised(0.0, 0.0, 2.0) == 0.0
    assert normalised(2.0, 0.0, 2.0) == 1.0
    assert normalised(-1.0, 1.0, 2.0) == -2.0
    assert math.isnan(normalised(1.0, 1.0, 1.0))
    assert math.isnan(normalised(1.0, 1.0, 0.5))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4, 1e9])
def test_the_p_value_does_not_depend_on_the_rewards_scale(scale):
    rng = np.random.default_rng(0)
    for _ in range(10):
        differences = scale * (rng.random(6) + 0.1)
        assert paired_difference(differences, [0.0] * 6, range(6))["p"] == pytest.approx(2 / 64, abs=0.01)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], [0, 1])])
def test_what_cannot_be_averaged_is_refused(values, clusters):
    with pytest.raises(ConfigurationError):
        clustered_mean(values, clusters)


def test_unequal_numbers_of_episodes_are_refused():
    with pytest.raises(ConfigurationError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0], [0, 1])
