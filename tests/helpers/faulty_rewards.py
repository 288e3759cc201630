"""Rewards that fail as rewards do; in a module of their own, so that processes can import them."""

from __future__ import annotations

import os
import time

import textgym
from textgym import Score

NEVER = 1000.0


def length(response):
    return float(len(response))


@textgym.reward(name="letters")
def decorated(response):
    return float(sum(map(str.isalpha, response)))


def as_told(response):
    """The response says what happens; else it is scored by its length."""
    if response.startswith("sleep "):
        time.sleep(float(response.split()[1]))
    elif response == "hang":
        time.sleep(NEVER)
    elif response == "raise":
        raise ValueError("told to")
    elif response == "nan":
        return float("nan")
    elif response == "die":
        os._exit(7)
    elif response == "exit":
        raise SystemExit(3)
    elif response == "pid":
        return float(os.getpid())
    return float(len(response))


class Unreadable(textgym.Reward):
    """Can be pickled, and not unpickled."""

    def score(self, episodes):
        return [Score(1.0) for _ in episodes]

    def __reduce__(self):
        return int, ("no number",)
