"""Unit tests of the code that the agent writes, run in the sandbox."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

from textgym.episode import Episode
from textgym.errors import DataError, RewardError, TextGymError
from textgym.rewards.core import Reward, Score
from textgym.sandbox import Job, Limits, Outcome, Sandbox, Status

__all__ = ["UnitTests", "code_of"]

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def code_of(reply: str) -> str:
    """The first fenced block of a reply in Markdown, the whole reply where it has none."""
    block = FENCED.search(reply)
    return block[1] if block else reply


class UnitTests(Reward):
    """The fraction of a sample's unit tests that the agent's program passes.

    The program is the prompt followed by the reply, as in HumanEval (Chen et al., 2021, arXiv:2107.03374); of a reply
    in Markdown the first fenced block. So after a prompt that ends with a function's docstring the reply may be the
    function's body, or the whole function. A program that passes no test scores 0, whatever the reason; the parts say
    how many ``tests`` there are, and how many of them ``passed``, ``failed``, ended in an ``error``, a ``timeout`` and
    so on (:class:`textgym.sandbox.Outcome`). Where the tests are missing or broken, or the sandbox itself breaks down,
    the score fails.

    Every reply is run in :mod:`textgym.sandbox`, whose documentation says what it protects from and what it does not.

    Args:
        tests_key: Where ``sample.meta`` has the tests: pairs of a list of arguments and the right value, or the source
            of a program that defines ``check(candidate)``, see :class:`textgym.sandbox.Job`.
        entry_point_key: Where it has the name of the function.
        allow_code_execution: Must be True: that you mean to run code that a model wrote.
        completes_prompt: Whether the program begins with the prompt, where that is a text.
        limits: Of each reply.
        max_workers: How many replies are run at a time; as many as this process may use processors where None.

    Raises:
        RewardError: ``allow_code_execution`` is not True.
        ConfigurationError: This system cannot provide the sandbox.
    """

    def __init__(
        self,
        tests_key: str = "tests",
        entry_point_key: str = "entry_point",
        *,
        allow_code_execution: bool = False,
        completes_prompt: bool = True,
        limits: Limits | None = None,
        max_workers: int | None = None,
    ) -> None:
        if allow_code_execution is not True:
            raise RewardError(
                "UnitTests runs the code that the agent writes, in a sandbox; read in textgym.sandbox what that does "
                "not protect from, and say UnitTests(allow_code_execution=True)."
            )
        self.tests_key, self.entry_point_key = tests_key, entry_point_key
        self.completes_prompt = completes_prompt
        self.limits, self.sandbox = limits, Sandbox(limits)
        self.max_workers = max_workers or len(os.sched_getaffinity(0))

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The fractions, several replies at a time."""
        with ThreadPoolExecutor(self.max_workers) as pool:
            return list(pool.map(self._score, episodes))

    def outcomes(self, episode: Episode) -> list[Outcome]:
        """What comes of each test of an episode's sample, with the reasons in words.

        Raises:
            DataError: The sample has no tests or no entry point, or the tests cannot be run.
            TextGymError: The sandbox broke down.
        """
        sample = episode.sample
        missing = [key for key in (self.tests_key, self.entry_point_key) if key not in sample.meta]
        if missing:
            raise DataError(f"sample {sample.id!r} has no {' and no '.join(map(repr, missing))} in its meta.")
        prompt = sample.prompt if self.completes_prompt and isinstance(sample.prompt, str) else ""
        program = prompt + code_of(episode.response)
        return self.sandbox.run(Job(program, sample.meta[self.entry_point_key], sample.meta[self.tests_key]))

    def _score(self, episode: Episode) -> Score:
        try:
            outcomes = self.outcomes(episode)
        except TextGymError as error:
            return Score(None, status=f"{self.name}: {error}")
        statuses = [outcome.status for outcome in outcomes]
        counts = {status: float(statuses.count(status)) for status in get_args(Status)}
        fraction = counts["passed"] / len(outcomes)
        return Score(fraction, {self.name: fraction, "tests": float(len(outcomes)), **counts})
