"""Code: completes a Python function from its signature and docstring, as in HumanEval (Chen et al., 2021, "Evaluating
large language models trained on code").

The built-in problems are small functions of numbers, texts and lists. The demonstrations are what beginners hand in, of
whom a third make a slip: the wrong order, a bound that is off by one, brackets forgotten; running the tests tells.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache, cached_property
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.invention import Chance, prompted
from textgym.envs.recipe import COMMON
from textgym.episode import Episode, Prompt, Sample
from textgym.rewards.unit_tests import UnitTests

__all__ = ["Code", "builtin_problems"]

N_PROBLEMS = 5000
N_TESTS = 4
N_ARGUMENTS = 500  # of each family of problems
N_DRAWS = 12  # of them, from which a problem's tests are chosen
SLIP_SHARE = 1 / 3
MORE_SHARE = 0.6  # of the problems about a number
TWO_LINES_SHARE = 0.3  # of those
SEED = (2026, 3, 11)


def _with_program(row: Row) -> Iterator[Row]:
    """A row of HumanEval with its tests as a program; they call other functions of the prompt too."""
    yield {name: row[name] for name in row if name != "test"} | {"tests": f"{row['prompt']}\n{row['test']}"}


class Code(BuiltinTask):
    """Functions to complete: the prompt is the signature and the docstring, the reply is the body.

    The default reward runs each reply in :mod:`textgym.sandbox`. To make this environment is to ask for that: unlike
    :class:`~textgym.rewards.UnitTests` it takes no ``allow_code_execution``, and like it refuses where the sandbox
    cannot be had. With another ``reward`` nothing is run.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`; the layout is ``"humaneval"``. Other data have
            ``meta["entry_point"]`` and ``meta["tests"]``, see :class:`~textgym.rewards.UnitTests`. With data the budget
            is 400 tokens.
        columns: See :class:`~textgym.data.BuiltinTask`.
    """

    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # section 2.3 of Chen et al.
    max_new_tokens = 48
    max_new_tokens_with_data = 400
    recipe = MappingProxyType({**COMMON, "total_timesteps": 40_000, "warm_start.epochs": 8})
    headline_metrics = ("pass@1", "tests_passed", "syntax_error_rate")
    layouts = MappingProxyType(
        {
            "humaneval": Layout(
                "openai/openai_humaneval",
                columns={"id": "task_id", "prompt": "prompt", "references": "canonical_solution"},
                rows=_with_program,
            )
        }
    )

    @cached_property
    def reward(self) -> UnitTests:  # type: ignore[override]
        """The fraction of the tests that the reply passes.

        Raises:
            ConfigurationError: This system cannot provide the sandbox.
        """
        return UnitTests(allow_code_execution=True)

    @classmethod
    def builtin(cls) -> tuple[Sample, ...]:
        """The built-in problems."""
        return builtin_problems()

    def demonstration(self, sample: Sample) -> list[str] | None:
        """What was handed in where that is known (``meta["handed_in"]``), else the first reference."""
        if not sample.references:
            return None
        return [sample.meta.get("handed_in", sample.references[0])]

    def lesson(self, sample: Sample) -> list[str] | None:
        """The first reference, which is indented as it stands."""
        return list(sample.references[:1]) or None

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means over the episodes whose tests were run.

        ``pass@1``: the share of replies that pass all of their tests; ``tests_passed``: the share of tests that a reply
        passes; ``syntax_error_rate``: the share of replies that are no Python.
        """
        parts = [episode.reward_parts for episode in episodes if "tests" in episode.reward_parts]
        if not parts:
            return {}
        return {
            "pass@1": fmean(part["passed"] == part["tests"] for part in parts),
            "tests_passed": fmean(part["passed"] / part["tests"] for part in parts),
            "syntax_error_rate": fmean(part["syntax_error"] > 0 for part in parts),
        }


# ----------------------------------------------------------------------------------------------- the built-in problems


class _Idea(NamedTuple):
    """What to compute: in words, in Python, and in Python with a slip; {a} and {b} are parameters, {k} is a number."""

    words: str
    right: str
    slip: str
    is_number: bool = False  # a whole number, about which more may be asked


NUMBER_IDEAS = (
    _Idea("the sum of {a} and {b}", "{a} + {b}", "{a} * {b}", True),
    _Idea("the difference of {a} and {b}", "{a} - {b}", "{b} - {a}", True),
    _Idea("the product of {a} and {b}", "{a} * {b}", "{a} + {b}", True),
    _Idea("the larger of {a} and {b}", "max({a}, {b})", "min({a}, {b})", True),
    _Idea("the smaller of {a} and {b}", "min({a}, {b})", "max({a}, {b})", True),
    _Idea("the distance between {a} and {b}", "abs({a} - {b})", "{a} - {b}", True),
    _Idea("the remainder of {a} divided by {b}", "{a} % {b}", "{a} // {b}", True),
    _Idea("how many times {b} goes into {a}", "{a} // {b}", "{a} / {b}", True),
    _Idea("the square of {a}", "{a} ** 2", "{a} * 2", True),
    _Idea("the mean of {a} and {b}", "({a} + {b}) / 2", "{a} + {b} / 2"),
    _Idea("whether {a} is greater than {b}", "{a} > {b}", "{a} >= {b}"),
    _Idea("whether {a} is at most {b}", "{a} <= {b}", "{a} < {b}"),
    _Idea("whether {a} is a multiple of {b}", "{a} % {b} == 0", "{a} % {b}"),
)
TEXT_IDEAS = (
    _Idea("the length of {a}", "len({a})", "len({a}) - 1", True),
    _Idea("the number of words in {a}", "len({a}.split())", "len({a})", True),
    _Idea("{a} in capitals", "{a}.upper()", "{a}.title()"),
    _Idea("{a} in small letters", "{a}.lower()", "{a}"),
    _Idea("{a} backwards", "{a}[::-1]", "{a}[:-1]"),
    _Idea("the first {k} letters of {a}", "{a}[:{k}]", "{a}[1:{k}]"),
    _Idea("the last {k} letters of {a}", "{a}[-{k}:]", "{a}[{k}:]"),
    _Idea("{a} without its first {k} letters", "{a}[{k}:]", "{a}[:{k}]"),
    _Idea("{a} repeated {k} times", "{a} * {k}", "{a} + {k}"),
    _Idea("whether {a} has more than {k} letters", "len({a}) > {k}", "len({a}) >= {k}"),
    _Idea("whether {a} begins with {b}", "{a}.startswith({b})", "{b} in {a}"),
    _Idea("whether {a} ends with {b}", "{a}.endswith({b})", "{b} in {a}"),
    _Idea("whether {b} is in {a}", "{b} in {a}", "{a} in {b}"),
    _Idea("how many times {b} is in {a}", "{a}.count({b})", "{a}.find({b})", True),
    _Idea("{a} followed by {b}", "{a} + {b}", "{b} + {a}"),
    _Idea("{a} and {b} with a blank between", "{a} + ' ' + {b}", "{a} + {b}"),
    _Idea("{a} without {b}", "{a}.replace({b}, '')", "{a}.replace({b}, ' ')"),
    _Idea("whether {a} is the same backwards", "{a} == {a}[::-1]", "{a}[0] == {a}[-1]"),
)
LIST_IDEAS = (
    _Idea("the sum of {a}", "sum({a})", "len({a})", True),
    _Idea("the largest of {a}", "max({a})", "{a}[-1]", True),
    _Idea("the smallest of {a}", "min({a})", "{a}[0]", True),
    _Idea("the length of {a}", "len({a})", "len({a}) - 1", True),
    _Idea("the first of {a}", "{a}[0]", "{a}[1]", True),
    _Idea("the last of {a}", "{a}[-1]", "{a}[0]", True),
    _Idea("the largest minus the smallest of {a}", "max({a}) - min({a})", "{a}[-1] - {a}[0]", True),
    _Idea("the sum of the squares of {a}", "sum(n ** 2 for n in {a})", "sum({a}) ** 2", True),
    _Idea("{a} in ascending order", "sorted({a})", "{a}"),
    _Idea("{a} in descending order", "sorted({a}, reverse=True)", "sorted({a})"),
    _Idea("{a} backwards", "{a}[::-1]", "{a}[:-1]"),
    _Idea("the first {k} of {a}", "{a}[:{k}]", "{a}[{k}]"),
    _Idea("the last {k} of {a}", "{a}[-{k}:]", "{a}[{k}:]"),
    _Idea("{a} with {k} added to each", "[n + {k} for n in {a}]", "{a} + [{k}]"),
    _Idea("{a} with each times {k}", "[n * {k} for n in {a}]", "{a} * {k}"),
    _Idea("the squares of {a}", "[n ** 2 for n in {a}]", "[n * 2 for n in {a}]"),
    _Idea("those of {a} above {k}", "[n for n in {a} if n > {k}]", "[n for n in {a} if n >= {k}]"),
    _Idea("those of {a} below {k}", "[n for n in {a} if n < {k}]", "[n for n in {a} if n <= {k}]"),
    _Idea("the even ones of {a}", "[n for n in {a} if n % 2 == 0]", "[n for n in {a} if n % 2]"),
    _Idea("how many of {a} are above {k}", "sum(n > {k} for n in {a})", "sum(n >= {k} for n in {a})"),
    _Idea("whether {k} is in {a}", "{k} in {a}", "{a}[0] == {k}"),
    _Idea("whether {a} is in order", "{a} == sorted({a})", "sorted({a})"),
)
MORE = (  # about a number, which is {value}, in brackets where it needs them {wrapped}, and {words}
    _Idea("{k} more than {words}", "{value} + {k}", "{value}"),
    _Idea("{k} less than {words}", "{value} - {k}", "{k} - {value}"),
    _Idea("{k} times {words}", "{wrapped} * {k}", "{value} * {k}"),
    _Idea("whether {words} is above {k}", "{value} > {k}", "{value} >= {k}"),
    _Idea("whether {words} is below {k}", "{value} < {k}", "{value} <= {k}"),
    _Idea("whether {words} is even", "{wrapped} % 2 == 0", "{wrapped} % 2"),
)
COMPARISONS = MORE[3:5]  # with a number that occurs, since that is where bounds matter
NO_MORE = _Idea("{words}", "{value}", "{value}")
NAMES = ("solve", "compute", "answer", "result", "task")
VERBS = ("Return", "Give back", "Compute")
TEXTS = ("Anna", "level", "noon", "a red car", "Berlin", "on time", "a cat and a hat", "tea at ten", "no", "banana")
PARTS = ("a", "e", "an", "on", "no", "at", "tea", "x")
Arguments = tuple[Any, ...]


def _numbers(chance: Chance) -> Arguments:
    return chance.between(0, 20), chance.between(1, 9)


def _texts(chance: Chance) -> Arguments:
    return chance.one_of(TEXTS), chance.one_of(PARTS)


def _list(chance: Chance) -> Arguments:
    values = [int(n) for n in chance.rng.integers(0, 13, size=chance.between(3, 6))]
    return (sorted(values) if chance.happens(0.3) else values,)


class _Family(NamedTuple):
    """Ideas about the same kind of parameters; their names, their values, and what {k} may be."""

    ideas: Sequence[_Idea]
    parameters: Sequence[tuple[str, str]]
    draw: Callable[[Chance], Arguments]
    numbers: range


FAMILIES = (
    _Family(NUMBER_IDEAS, (("a", "b"), ("x", "y"), ("m", "n"), ("p", "q")), _numbers, range(2, 10)),
    _Family(TEXT_IDEAS, (("s", "t"), ("text", "part"), ("word", "end"), ("line", "piece")), _texts, range(2, 5)),
    _Family(LIST_IDEAS, (("numbers", ""), ("values", ""), ("items", ""), ("prices", "")), _list, range(2, 10)),
)


@cache
def builtin_problems() -> tuple[Sample, ...]:
    """5,000 problems of four tests each; ``meta`` has the tests, and what the beginner handed in."""
    chance = Chance(SEED)
    arguments = {family: [family.draw(chance) for _ in range(N_ARGUMENTS)] for family in FAMILIES}
    samples: dict[Prompt, Sample] = {}
    while len(samples) < N_PROBLEMS:
        sample = _problem(chance, arguments, samples)
        if sample is not None:
            samples[sample.prompt] = sample
    return tuple(samples.values())


def _problem(
    chance: Chance, arguments: Mapping[_Family, Sequence[Arguments]], taken: Container[Prompt]
) -> Sample | None:
    """A random problem; None where its prompt is taken, or no test tells the slip from the right function."""
    family = chance.one_of(FAMILIES)
    idea = chance.one_of(family.ideas)
    more = chance.one_of(MORE) if idea.is_number and chance.happens(MORE_SHARE) else NO_MORE
    a, b = chance.one_of(family.parameters)
    signature = f"{a}, {b}" if "{b}" in idea.words else a
    drawn = chance.rng.integers(N_ARGUMENTS, size=N_DRAWS)
    draws = [arguments[family][i][: signature.count(",") + 1] for i in drawn]
    names: dict[str, Any] = {"a": a, "b": b, "k": chance.one_of(family.numbers)}
    if more in COMPARISONS:
        names["k"] = _function(signature, _bodies(idea.right, "{value}", a, b)[0])(*draws[0])
    name = chance.one_of(NAMES)
    words = more.words.replace("{words}", idea.words).format(**names)
    prompt = f'def {name}({signature}):\n    """{chance.one_of(VERBS)} {words}."""\n'
    if prompt in taken:
        return None

    style = int(more is not NO_MORE and chance.happens(TWO_LINES_SHARE))
    right, *slips = (
        [body.format(k=names["k"]) for body in _bodies(value, step, a, b)]
        for value, step in ((idea.right, more.right), (idea.right, more.slip), (idea.slip, more.right))
    )
    slip = chance.one_of([bodies[style] for bodies in slips if bodies[style] != right[style]])
    tests = _tests(_function(signature, right[0]), _function(signature, slip), draws)
    if tests is None:
        return None
    handed_in = slip if chance.happens(SLIP_SHARE) else right[style]
    references = right[:1] if more is NO_MORE else right
    return prompted(prompt, references, entry_point=name, tests=tests, handed_in=handed_in)


@cache
def _bodies(value: str, more: str, a: str, b: str) -> tuple[str, str]:
    """The body that computes something more of a value, in one line and in two; {k} is left open."""
    value = value.replace("{a}", a).replace("{b}", b)
    wrapped = f"({value})" if isinstance(ast.parse(value, mode="eval").body, ast.BinOp) else value
    one = more.replace("{value}", value).replace("{wrapped}", wrapped)
    two = more.replace("{value}", "value").replace("{wrapped}", "value")
    return f"    return {one}", f"    value = {value}\n    return {two}"


@cache
def _function(signature: str, body: str) -> Callable[..., Any]:
    """The function of one of our own bodies."""
    namespace: dict[str, Any] = {}
    exec(f"def function({signature}):\n{body}", namespace)
    return namespace["function"]


def _tests(right: Callable[..., Any], slip: Callable[..., Any], draws: Sequence[Arguments]) -> list[list[Any]] | None:
    """Pairs of arguments and a right value: up to two that the slip fails, then those of another value first.

    None where the slip fails none, or where all of them have the same value, which a constant would pass.
    """
    tests = [[list(arguments), right(*arguments)] for arguments in {repr(draw): draw for draw in draws}.values()]
    telling = [test for test in tests if _fails(slip, *test)]
    if not telling:
        return None
    chosen = telling[:2]
    rest = sorted((test for test in tests if test not in chosen), key=lambda test: test[1] == chosen[0][1])
    chosen += rest[: N_TESTS - len(chosen)]
    is_constant = all(value == chosen[0][1] for _, value in chosen)
    return None if is_constant or len(chosen) < N_TESTS else chosen


def _fails(function: Callable[..., Any], arguments: Sequence[Any], value: Any) -> bool:
    try:
        return bool(function(*arguments) != value)
    except (TypeError, ValueError, IndexError):
        return True
