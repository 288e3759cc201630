"""Playing every sample of a split once, and what comes out of it, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

from textgym.episode import Episode
from textgym.errors import ConfigurationError
from textgym.task import Task
from textgym.vector_env import TokenVectorEnv

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "episode_seed",
    "evenly_spaced",
    "play",
    "summarise",
    "wilson_interval",
]

RESAMPLES = 1000
CONFIDENCE = 0.95

Act = Callable[[dict[str, np.ndarray]], np.ndarray]
Estimate = dict[str, float]
"""``{"value", "low", "high", "n"}``: a figure, its 95% interval and the number of episodes that it is about."""


def play(
    venv: TokenVectorEnv,
    act: Act,
    indices: Sequence[int] | None = None,
    *,
    seed: int = 0,
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> list[Episode]:
    """Plays samples of the environment's split, each exactly once.

    The environment's side of an episode depends on ``seed`` and on the sample's index, not on the number of
    environments. One that has no sample left is held at a prompt: its tokens are taken back at once and its episode
    never ends, so it is not scored.

    Args:
        venv: Its ``num_envs`` episodes are played side by side. Those under way are lost.
        act: Gives actions ``(num_envs,)`` for a batch of observations, ``(num_envs, max_context)`` each.
        indices: Which samples; all of them where None.
        seed: For the tasks that answer at random.
        on_episode: Called with each episode as it ends.

    Returns:
        The finished episodes, in the order of ``indices``.

    Raises:
        ConfigurationError: The environments truncate episodes, or there is nothing to play.
    """
    if venv.max_episode_steps is not None:
        raise ConfigurationError("episodes cut off by max_episode_steps are not scored; evaluate without it.")
    wanted = list(range(len(venv.samples)) if indices is None else indices)
    if not wanted:
        raise ConfigurationError("there are no samples to play: indices is empty.")
    rows = _Rows(venv, wanted, seed)
    observation = rows.start()
    while rows.busy.any():
        actions = np.where(rows.busy, act(observation), rows.idle_token)
        observation, _, terminated, _, _ = venv.step(actions)
        for place in rows.finish(terminated):
            on_episode(rows.episodes[place])
        observation = rows.restart(observation, terminated)
    return [rows.episodes[place] for place in range(len(wanted))]


class _Rows:
    """Which environment plays which sample.

    Attributes:
        busy: ``(num_envs,)`` bool, the environments whose episode counts.
        idle_token: What is written where none counts, and taken back before it can end a turn.
        episodes: The finished ones, by place in the list of samples.
    """

    def __init__(self, venv: TokenVectorEnv, wanted: Sequence[int], seed: int) -> None:
        self.venv, self.wanted, self.seed = venv, wanted, seed
        self.places = np.arange(venv.num_envs)
        self.next = venv.num_envs
        self.busy = self.places < len(wanted)
        self.idle_token = _harmless_token(venv)
        self.playing: list[Episode | None] = []
        self.episodes: dict[int, Episode] = {}

    def start(self) -> dict[str, np.ndarray]:
        return self._reset(np.ones(self.venv.num_envs, dtype=bool))

    def finish(self, terminated: np.ndarray) -> list[int]:
        """Keeps the episodes that ended, and gives their environments the next samples. The places that ended."""
        over = []
        for row in np.flatnonzero(terminated & self.busy).tolist():
            episode = self.playing[row]
            if episode is not None:
                over.append(int(self.places[row]))
                self.episodes[over[-1]] = episode
            self.busy[row] = self.next < len(self.wanted)
            if self.busy[row]:
                self.places[row] = self.next
                self.next += 1
        return over

    def restart(self, observation: dict[str, np.ndarray], terminated: np.ndarray) -> dict[str, np.ndarray]:
        rows = terminated | ~self.busy
        return self._reset(rows) if rows.any() and self.busy.any() else observation

    def _reset(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        samples = [self.wanted[place % len(self.wanted)] for place in self.places.tolist()]
        seeds = [episode_seed(self.seed, sample) for sample in samples]
        observation, _ = self.venv.reset(seed=seeds, options={"samples": samples, "reset_mask": rows})
        self.playing = self.venv.episodes
        return observation


def episode_seed(seed: int, *place: int) -> int:
    """The seed of the environment's side of an episode, from that of an evaluation and the sample's index."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])


def _harmless_token(venv: TokenVectorEnv) -> int:
    """A token that ends no turn."""
    setting = venv.setting
    for token in np.flatnonzero(~setting.is_end_token).tolist():
        if not setting.stop or not setting.may_complete_stop(np.array([token]))[0]:
            return token
    return 0


def evenly_spaced(n: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers 0 to n - 1."""
    return sorted({int(index) for index in np.linspace(0, n - 1, min(n, wanted)).round()})


def summarise(task: Task, episodes: Sequence[Episode], *, seed: int = 0) -> dict[str, Estimate]:
    """The reward, every metric of the task, and the number of unscored episodes, which count nowhere else.

    A metric that is the mean over the episodes that have it has a Wilson interval where its values are 0 or 1, else a
    bootstrap interval over those values; any other metric is computed again on resampled episodes.

    Args:
        task: Whose metrics.
        episodes: Finished ones.
        seed: Of the resampling.

    Returns:
        By name; what no episode defines is left out.
    """
    scored = [episode for episode in episodes if episode.score_status == "ok"]
    rng = np.random.default_rng(seed)
    summary: dict[str, Estimate] = {}
    if scored:
        summary["reward"] = _mean([episode.reward for episode in scored], rng)
        summary |= _metrics(task, scored, rng)
    n_unscored = float(len(episodes) - len(scored))
    summary["unscored"] = {"value": n_unscored, "low": n_unscored, "high": n_unscored, "n": len(episodes)}
    return summary


def _metrics(task: Task, episodes: Sequence[Episode], rng: np.random.Generator) -> dict[str, Estimate]:
    whole = _finite(task.metrics(episodes))
    singles = [_finite(task.metrics([episode])) for episode in episodes]
    summary: dict[str, Estimate] = {}
    others = []
    for name, value in whole.items():
        values = [single[name] for single in singles if name in single]
        if values and math.isclose(fmean(values), value, rel_tol=1e-9, abs_tol=1e-12):
            summary[name] = _mean(values, rng)
        else:
            others.append(name)
    intervals = _resampled_intervals(task, episodes, others, rng) if others else {}
    for name in others:
        low, high = intervals.get(name, (whole[name], whole[name]))
        summary[name] = {"value": whole[name], "low": low, "high": high, "n": len(episodes)}
    return {name: summary[name] for name in whole}


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _mean(values: Sequence[float], rng: np.random.Generator) -> Estimate:
    is_share = set(values) <= {0.0, 1.0}
    low, high = wilson_interval(sum(values), len(values)) if is_share else bootstrap_interval(values, rng)
    return {"value": fmean(values), "low": low, "high": high, "n": len(values)}


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson, "Probable inference", 1927), which is never empty."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    radius = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - radius) / scale), min(1.0, (centre + radius) / scale)


def bootstrap_interval(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13)."""
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    # drawing n values with replacement is drawing how often each distinct one comes
    drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
    return _percentiles(drawn @ distinct / len(values))


def _resampled_intervals(
    task: Task, episodes: Sequence[Episode], names: Sequence[str], rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(RESAMPLES):
        metrics = _finite(task.metrics([episodes[i] for i in rng.integers(len(episodes), size=len(episodes))]))
        for name in names:
            if name in metrics:
                found[name].append(metrics[name])
    return {name: _percentiles(values) for name, values in found.items() if values}


def _percentiles(values: Any) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
