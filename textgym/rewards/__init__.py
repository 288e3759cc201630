"""Rewards: what a finished turn or episode is worth."""

from textgym.rewards.abstain import Abstain
from textgym.rewards.core import Reward, Score, as_reward, gate, reward

__all__ = ["Abstain", "Reward", "Score", "as_reward", "gate", "reward"]
