"""textgym: language tasks as token-level Gymnasium environments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textgym.data import DataTask, load_samples
from textgym.episode import Episode, Sample, Turn
from textgym.registration import make, make_vec, register, register_builtin_and_plugins, registered_ids
from textgym.rewards import Reward, Score, reward
from textgym.task import Task
from textgym.text_env import TextEnv
from textgym.token_env import TokenEnv
from textgym.vector_env import TokenVectorEnv

if TYPE_CHECKING:
    from textgym.benchmarking import benchmark
    from textgym.checking import check_env
    from textgym.sb3 import sb3_vec_env

__version__ = "0.1.0"

__all__ = [
    "DataTask",
    "Episode",
    "Reward",
    "Sample",
    "Score",
    "Task",
    "TextEnv",
    "TokenEnv",
    "TokenVectorEnv",
    "Turn",
    "benchmark",
    "check_env",
    "load_samples",
    "make",
    "make_vec",
    "register",
    "registered_ids",
    "reward",
    "sb3_vec_env",
]

_LAZY = {  # these import torch or matplotlib (PEP 562)
    "benchmark": "textgym.benchmarking",
    "check_env": "textgym.checking",
    "sb3_vec_env": "textgym.sb3",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'textgym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_builtin_and_plugins()
