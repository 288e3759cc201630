"""How ``textgym train`` trains the built-in model on a task, unless its recipe says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["COMMON"]

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "warm_start.epochs": 6,
        "warm_start.batch_size": 8,
        "warm_start.learning_rate": 1e-3,
        "policy.temperature": 0.7,
        "ppo.n_episodes": 256,
        "ppo.batch_size": 1024,
        "ppo.learning_rate": 3e-4,
        "ppo.gae_lambda": 1.0,
        "ppo.vf_coef": 0.1,
        "ppo.freeze": r"embed_tokens|layers\.0\.",
        "ppo.kl_coef": 0.01,
        "validation.evaluations": 6,
    }
)
"""Found on translation, and good for the others; see ``benchmarks/LOG.md``."""
