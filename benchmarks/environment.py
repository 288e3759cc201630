"""Speed of the environment alone: tokens a second of ``TokenVectorEnv.step`` on one core.

    python benchmarks/environment.py

64 environments, prompts and replies of 32 random words, a function as reward, ``copy=False``; medians of five runs of
a hundred replies each, for a reward that takes no time and for one that reads the words.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from random_words import make_venv, score

import textgym

N_ENVS, PROMPT, RESPONSE, VOCABULARY, REPLIES = 64, 32, 32, 8192, 100


def rate(venv: textgym.TokenVectorEnv) -> float:
    """Tokens a second."""
    actions = np.random.default_rng(0).integers(0, VOCABULARY, (REPLIES * RESPONSE, N_ENVS))
    start = time.perf_counter()
    for row in actions:
        venv.step(row)
    return actions.size / (time.perf_counter() - start)


def main() -> None:
    for name, reward in (("length of the reply", lambda response: len(response)), ("share of even words", score)):
        venv = make_venv((N_ENVS, PROMPT, RESPONSE), VOCABULARY, copy=False, reward=textgym.reward(reward))
        venv.reset(seed=0)
        rate(venv)
        rates = sorted(rate(venv) for _ in range(5))
        median, *spread = (value / 1e6 for value in (statistics.median(rates), rates[0], rates[-1]))
        print(
            f"reward, {name}: {median:.2f} million tokens a second ({spread[0]:.2f}, {spread[1]:.2f}), "
            f"{N_ENVS / median:.0f} microseconds a step"
        )


if __name__ == "__main__":
    main()
