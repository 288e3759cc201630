"""Rewards: what a finished turn or episode is worth."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textgym.rewards.core import Reward, Score, as_reward, gate, reward

if TYPE_CHECKING:
    from textgym.rewards.abstain import Abstain
    from textgym.rewards.composition import Shaping, ZScore, clip
    from textgym.rewards.evaluate_metric import Evaluate, as_metric
    from textgym.rewards.judge import Judge
    from textgym.rewards.lexical import (
        Bleu,
        ChrF,
        Contains,
        DistinctN,
        ExactMatch,
        Length,
        Matches,
        Meteor,
        Repetition,
        Rouge,
        TokenF1,
    )
    from textgym.rewards.models import EmbeddingSimilarity, Fluency, RewardModel
    from textgym.rewards.parallel import Parallel, Timeout
    from textgym.rewards.unit_tests import UnitTests

__all__ = [
    "Abstain",
    "Bleu",
    "ChrF",
    "Contains",
    "DistinctN",
    "EmbeddingSimilarity",
    "Evaluate",
    "ExactMatch",
    "Fluency",
    "Judge",
    "Length",
    "Matches",
    "Meteor",
    "Parallel",
    "Repetition",
    "Reward",
    "RewardModel",
    "Rouge",
    "Score",
    "Shaping",
    "Timeout",
    "TokenF1",
    "UnitTests",
    "ZScore",
    "as_metric",
    "as_reward",
    "clip",
    "gate",
    "reward",
]

# Imported when they are asked for (PEP 562): every environment needs this module, and some of these bring a database or
# an event loop with them.
_LAZY = {
    "abstain": ("Abstain",),
    "composition": ("Shaping", "ZScore", "clip"),
    "evaluate_metric": ("Evaluate", "as_metric"),
    "judge": ("Judge",),
    "lexical": (
        "Bleu", "ChrF", "Contains", "DistinctN", "ExactMatch", "Length", "Matches", "Meteor", "Repetition", "Rouge",
        "TokenF1",
    ),
    "models": ("EmbeddingSimilarity", "Fluency", "RewardModel"),
    "parallel": ("Parallel", "Timeout"),
    "unit_tests": ("UnitTests",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"textgym.rewards.{module}"), name)
    raise AttributeError(f"module 'textgym.rewards' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
