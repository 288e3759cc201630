"""Rewards: what a finished turn or episode is worth."""

from textgym.rewards.abstain import Abstain
from textgym.rewards.composition import Parallel, Shaping, Timeout, ZScore, clip
from textgym.rewards.core import Reward, Score, as_reward, gate, reward
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
