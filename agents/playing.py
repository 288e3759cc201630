"""A policy at play in token environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textgym.agents.policies import CausalLMPolicy
from textgym.episode import Episode
from textgym.evaluation import play
from textgym.vector_env import TokenVectorEnv

__all__ = ["play_policy"]


def play_policy(
    policy: CausalLMPolicy,
    venv: TokenVectorEnv,
    indices: Sequence[int] | None = None,
    *,
    deterministic: bool = True,
    seed: int = 0,
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> list[Episode]:
    """Plays samples as :func:`textgym.evaluation.play` does, decoding incrementally.

    The policy chooses the likeliest tokens or, where not ``deterministic``, samples with torch's global generator.
    """
    with policy.incremental_decoding(venv.num_envs):
        return play(
            venv,
            lambda observation: policy.predict(observation, deterministic=deterministic)[0],  # type: ignore[arg-type]
            indices,
            seed=seed,
            on_episode=on_episode,
        )
