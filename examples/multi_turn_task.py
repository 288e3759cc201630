"""A task of several turns: guess a number, with the environment saying higher or lower.

    python examples/multi_turn_task.py

Plays one episode at turn level by bisection, and one at token level at random, then checks the environment.
"""

from __future__ import annotations

import re

import textgym
from textgym import Episode, Sample, Task


class GuessTheNumber(Task):
    """The agent asks until it has found the number, at most seven times."""

    max_new_tokens = 8

    def samples(self, split):
        return [Sample(id=str(n), prompt="Guess my number, 0 to 99.", references=(str(n),)) for n in range(100)]

    def respond(self, episode: Episode, rng) -> str | None:
        guess, number = guessed(episode.response), int(episode.sample.references[0])
        if guess == number or len(episode.responses) == 7:
            return None
        return "That is no number." if guess is None else "Higher." if guess < number else "Lower."


def guessed(text: str) -> int | None:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else None


def speed(episode: Episode) -> float:
    """1 for a hit with the first guess, 0.1 less for each further one, 0 for none."""
    hit = guessed(episode.response) == int(episode.sample.references[0])
    return 1.1 - 0.1 * len(episode.responses) if hit else 0.0


def main() -> None:
    textgym.register("demo/GuessTheNumber-v0", task=GuessTheNumber, reward=speed)
    env = textgym.make("demo/GuessTheNumber-v0", level="turn")
    answer, info = env.reset(seed=0)
    low, high, over = 0, 99, False
    while not over:
        guess = (low + high) // 2
        answer, reward, over, _, info = env.step(f" {guess}")
        low, high = (guess + 1, high) if "Higher" in str(answer) else (low, guess - 1)
    print(info["episode_record"]["turns"], "reward", reward)
    textgym.check_env(textgym.make("demo/GuessTheNumber-v0"))


if __name__ == "__main__":
    main()
