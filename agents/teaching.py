"""Teaching a language model a part of a task's facts, and finding out what it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from textgym.agents.playing import play_policy
from textgym.agents.policies import CausalLMPolicy
from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError
from textgym.hashing import hashed_share
from textgym.task import Task
from textgym.vector_env import TokenVectorEnv

__all__ = ["mark_known", "probe", "taught_samples"]

KNOWN_FROM = 0.5


def taught_samples(samples: Iterable[Sample], share: float) -> list[Sample]:
    """About a share of the samples, chosen by a hash of their ids.

    Raises:
        ConfigurationError: The share is not between 0 and 1.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"the share of the facts to teach is above 0 and at most 1, not {share}.")
    return [sample for sample in samples if hashed_share(f"taught\n{sample.id}") < share]


def probe(
    policy: CausalLMPolicy,
    venv: TokenVectorEnv,
    times: int = 10,
    *,
    metric: str = "accuracy",
    seed: int = 0,
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> dict[str, float]:
    """Asks every question of the environment's split several times, with sampled answers.

    Args:
        policy: Who is asked.
        venv: Who asks.
        times: How often.
        metric: The metric of the task that is 1 where an answer is right.
        seed: Of the sampling; the global generator is left as it was.
        on_episode: Called with each answer.

    Returns:
        The share of right answers by sample id.

    Raises:
        ConfigurationError: The task has no such metric.
    """
    indices = [index for index in range(len(venv.samples)) for _ in range(times)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        episodes = play_policy(policy, venv, indices, deterministic=False, seed=seed, on_episode=on_episode)
    right: Counter[str] = Counter()
    for episode in episodes:
        right[episode.sample.id] += _is_right(venv.task, episode, metric)
    return {id: count / times for id, count in right.items()}


def _is_right(task: Task, episode: Episode, metric: str) -> bool:
    metrics = task.metrics([episode])
    if metric not in metrics:
        raise ConfigurationError(
            f"{type(task).__name__} has no metric {metric!r} that tells a right answer, so what is known cannot be "
            f"probed; it has {', '.join(metrics) or 'none'}."
        )
    return metrics[metric] == 1.0


def mark_known(venv: TokenVectorEnv, shares: Mapping[str, float]) -> None:
    """Writes into the samples' ``meta`` the share of right answers (``probe``) and whether it is a half (``known``).

    Samples that were not probed stay as they are.
    """
    venv.setting.samples = [
        replace(s, meta={**s.meta, "probe": shares[s.id], "known": shares[s.id] >= KNOWN_FROM}) if s.id in shares else s
        for s in venv.samples
    ]
