"""Math: word problems whose answer is a number after ``####``, as in GSM8K (Cobbe et al., "Training verifiers to solve
math word problems", 2021).

The built-in problems take one or two steps with small numbers. The demonstrations are what pupils hand in, of whom many
write down no more than the answer, see :class:`Math`; that writing the steps down helps is left to find out.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.invention import Chance, prompted
from textgym.envs.recipe import COMMON
from textgym.episode import Episode, Sample
from textgym.rewards import Reward, Score

__all__ = ["Math", "MathAnswer", "answer_of", "builtin_problems", "is_correct", "is_well_formed", "numbers_in"]

MARK = "####"
MAX_DIGITS = 100  # longer numbers are nobody's answer, and int() refuses them from 4,300 on
NUMBER = (
    r"(?P<minus>(?<![\w)%])[-−])?[$€£]?"  # after a number or a bracket it is a subtraction
    r"(?P<decimal>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:(?P<and>\s[0-9]+)?/(?P<below>[0-9]+))?"
)
_NUMBER = re.compile(NUMBER)
_ANSWER = re.compile(rf"\s*{NUMBER}\s*%?\.?\s*")
_CALCULATION = re.compile(r"<<[^<>]*>>")

N_PROBLEMS = 10_000
SEED = (2026, 3, 2)
OPERANDS = range(2, 16)
LARGEST = 20  # of all numbers in the working
WORKED_SHARE = 0.4
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def numbers_in(text: str) -> list[Fraction]:
    """The numbers in a text, exactly, in order.

    They may have a minus, a dollar, euro or pound sign, commas between thousands and decimals, and be fractions
    (``3/4``, ``2 1/2``). A per cent sign is a unit like any other: 50% is 50. A minus after a number, a word or a
    bracket is a subtraction. What is divided by zero, or longer than 100 characters, is left out.
    """
    values = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in values if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    below = match["below"] or "1"
    if len(match[0]) > MAX_DIGITS or not below.strip("0"):
        return None
    value = Fraction(match["decimal"].replace(",", ""))
    value = value + Fraction(int(match["and"]), int(below)) if match["and"] else value / int(below)
    return -value if match["minus"] else value


def answer_of(text: str) -> Fraction | None:
    """The first number after the last ``####``; where there is no such mark, the last number; None if there is none."""
    _, mark, answer = text.rpartition(MARK)
    found = numbers_in(answer)
    if not found:
        return None
    return found[0] if mark else found[-1]


def is_well_formed(reply: str) -> bool:
    """Whether the reply has ``####`` once, and then a number and nothing else but a per cent sign or a full stop."""
    _, mark, answer = reply.partition(MARK)
    return bool(mark) and _ANSWER.fullmatch(answer) is not None


class MathAnswer(Reward):
    """A reward for the right number, compared exactly, and a small one for saying it in the form that is asked for.

    Both are read off the text, see :func:`answer_of` and :func:`is_well_formed`; nothing of it is ever run.

    Args:
        correct: For an answer that equals a reference's.
        well_formed: For the form, whatever the answer.
    """

    def __init__(self, correct: float = 1.0, well_formed: float = 0.1) -> None:
        self.correct, self.well_formed = correct, well_formed

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """Marks an episode as unscored where no reference holds a number."""
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> Score:
        if all(answer_of(reference) is None for reference in episode.sample.references):
            return Score(None, status=f"{self.name}: no reference of sample {episode.sample.id!r} holds a number")
        parts = {"correct": float(is_correct(episode)), "well_formed": float(is_well_formed(episode.response))}
        return Score(self.correct * parts["correct"] + self.well_formed * parts["well_formed"], parts)


def is_correct(episode: Episode) -> bool:
    """Whether the response's answer equals that of a reference."""
    answer = answer_of(episode.response)
    return answer is not None and any(answer == answer_of(reference) for reference in episode.sample.references)


def _prompt(question: str) -> str:
    return f"Question: {question}\nEnd with {MARK} and the number.\nAnswer:"


def _without_calculations(row: Row) -> Iterator[Row]:
    """A row of GSM8K without the annotations of its calculator, ``<<16-3-4=9>>``."""
    yield {**row, "answer": _CALCULATION.sub("", row["answer"])}


class Math(BuiltinTask):
    """Word problems; the reply may work them out, and ends with ``####`` and the number.

    The references are worked answers of the same form, or just numbers. Data of one's own bring the whole prompt:
    ``columns={"prompt": "Question: {problem}\\nEnd with #### and the number.\\nAnswer:", "references": "solution"}``.

    The built-in demonstrations are what pupils handed in: two in five wrote the steps down, and the others no more than
    the answer. All of them are right.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`; the layout is ``"gsm8k"``, whose solutions are left as they are
            but for the calculator's annotations. With data the budget is 400 tokens, which GSM8K's solutions need.
        columns: See :class:`~textgym.data.BuiltinTask`.
    """

    reward = MathAnswer()
    stop = ("\nQuestion:",)
    max_new_tokens = 40
    max_new_tokens_with_data = 400
    recipe = MappingProxyType(
        {
            **COMMON,
            "total_timesteps": 100_000,
            "warm_start.epochs": 8,
            "ppo.n_episodes": 512,
            "ppo.learning_rate": 0.0005,
            "policy.temperature": 1.0,
            "ppo.gae_lambda": 0.95,
        }
    )
    headline_metrics = ("accuracy", "well_formed_rate", "worked_rate")
    layouts = MappingProxyType(
        {
            "gsm8k": Layout(
                "openai/gsm8k",
                config="main",
                columns={"prompt": _prompt("{question}"), "references": "answer"},
                rows=_without_calculations,
            )
        }
    )

    @classmethod
    def builtin(cls) -> tuple[Sample, ...]:
        """The built-in problems."""
        return builtin_problems()

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Shares of replies: right; of the form that is asked for; with something before the answer.

        ``accuracy/1`` and ``accuracy/2`` are those of the built-in problems of one and of two steps.
        """
        if not episodes:
            return {}
        metrics = {
            "well_formed_rate": fmean(is_well_formed(episode.response) for episode in episodes),
            "worked_rate": fmean(bool(e.response.rpartition(MARK)[0].strip()) for e in episodes),
        }
        groups = {"accuracy": [episode for episode in episodes if episode.sample.references]}
        for steps in (1, 2):
            groups[f"accuracy/{steps}"] = [e for e in groups["accuracy"] if e.sample.meta.get("steps") == steps]
        return metrics | {name: fmean(map(is_correct, members)) for name, members in groups.items() if members}


# ----------------------------------------------------------------------------------------------- the built-in problems


@cache
def builtin_problems() -> tuple[Sample, ...]:
    """10,000 different problems; ``meta`` has the number of steps of each, and the demonstration."""
    tables = json.loads((Path(__file__).parent / "data" / "word_problems" / "problems.json").read_text("utf-8"))
    chance = Chance(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_PROBLEMS:
        problem = chance.one_of(tables["problems"])
        name, other = chance.some_of(tables["names"], 2)
        steps = tuple(problem["steps"])
        values = chance.one_of(_operands(steps))
        question = problem["text"].format(name=name, other=other, items=chance.one_of(tables["items"]), **values)
        worked, answer = _solution(steps, values)
        handed_in = f"{worked} {answer}" if chance.happens(WORKED_SHARE) else answer
        sample = prompted(_prompt(question), [f"{worked} {answer}"], steps=len(steps), demonstration=handed_in)
        samples.setdefault(sample.id, sample)
    return tuple(samples.values())


@cache
def _operands(steps: tuple[str, ...]) -> list[dict[str, int]]:
    """All choices of the numbers a, b and, where it is used, c, with which no number of the working is too large."""
    names = [name for name in "abc" if any(name in step for step in steps)]
    choices = (dict(zip(names, numbers, strict=True)) for numbers in product(OPERANDS, repeat=len(names)))
    return [values for values in choices if all(0 < line[-1] <= LARGEST for line in _working(steps, values))]


def _working(steps: Sequence[str], values: Mapping[str, int]) -> list[tuple[int, str, int, int]]:
    """Each step's numbers, operation and result, which the next step calls t."""
    known, lines = dict(values), []
    for step in steps:
        left, operation, right = step.split()
        known["t"] = OPERATIONS[operation](a := known[left], b := known[right])
        lines.append((a, operation, b, known["t"]))
    return lines


def _solution(steps: Sequence[str], values: Mapping[str, int]) -> tuple[str, str]:
    """The steps, ``3 + 4 = 7, 7 - 2 = 5``, and the answer, ``#### 5``."""
    lines = _working(steps, values)
    return ", ".join(f"{a} {operation} {b} = {result}" for a, operation, b, result in lines), f"{MARK} {lines[-1][-1]}"
