"""textgym: language tasks as token-level Gymnasium environments."""

from textgym.episode import Episode, Sample, Turn
from textgym.rewards import Reward, Score, reward
from textgym.task import Task

__version__ = "0.1.0"

__all__ = ["Episode", "Reward", "Sample", "Score", "Task", "Turn", "reward"]
