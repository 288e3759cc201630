"""The reward interface, plain functions as rewards, and how rewards combine.

Scoring is by batch and never raises: a leaf that fails is asked again one episode at a time, so that one episode's
failure is not its neighbours', and what still fails is marked in its :class:`Score`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from textgym.episode import Episode
from textgym.errors import RewardError
from textgym.texts import described

__all__ = ["Reward", "RewardLike", "Score", "When", "as_reward", "gate", "one_moment", "reward"]

When = Literal["episode", "turn", "token"]
WHENS: tuple[When, ...] = ("token", "turn", "episode")


@dataclass(frozen=True)
class Score:
    """What one reward says of one episode.

    Args:
        value: The reward, or None where it could not be scored.
        parts: The values it is made of, by name, before weights.
        status: ``"ok"``, or the reason why there is no value.
    """

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)
    status: str = "ok"


class Reward(ABC):
    """Scores episodes, always in a batch.

    Subclass it and give :meth:`score`. Rewards add, subtract, scale and multiply (``0.7 * a + 0.3 * b``). What the
    constructor takes is shown where the object keeps it under the same name, and a benchmark tells rewards apart by it.

    Attributes:
        name: Under which its value is logged; the snake-case class name where none is given.
        when: ``"episode"``: asked once, at the end. ``"turn"``: at each turn's end, for that turn's increment.
            ``"token"``: after each of the agent's tokens. The step that earned a reward returns it.
    """

    name: str = ""
    when: When = "episode"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")

    @abstractmethod
    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One :class:`Score` an episode, in order. May raise: see :func:`score_episodes`."""

    @property
    def whens(self) -> frozenset[When]:
        """The moments at which this reward, or any part of it, wants to be asked."""
        return frozenset({self.when})

    def score_at(self, when: When, episodes: Sequence[Episode]) -> list[Score]:
        """The scores due at one moment; a reward that is not due then adds 0."""
        if when != self.when:
            return [Score(0.0) for _ in episodes]
        return _guarded(self, episodes)

    def __add__(self, other: Reward | float) -> Reward:
        return _Sum([(1.0, self), (1.0, _operand(other))])

    __radd__ = __add__

    def __sub__(self, other: Reward | float) -> Reward:
        return self + -1.0 * _operand(other)

    def __rsub__(self, other: Reward | float) -> Reward:
        return _operand(other) + -1.0 * self

    def __neg__(self) -> Reward:
        return -1.0 * self

    def __mul__(self, other: Reward | float) -> Reward:
        if isinstance(other, numbers.Real):
            return _Sum([(float(other), self)])
        return _Product([self, _operand(other)])

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Reward:
        return self * (1.0 / other)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reward:
        """Itself: a reward may hold a model, and Gymnasium copies what it is given."""
        return self

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        kept = [f"{name}={described(getattr(self, name))}" for name in names if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(kept)})"


RewardLike = Reward | Callable[..., Any]


def reward(function: Callable[..., Any] | None = None, *, name: str | None = None, when: When = "episode") -> Any:
    """Makes a :class:`Reward` of a plain function; also a decorator.

    The function takes any subset, by name, of ``prompt``, ``response`` (the agent's last turn), ``references``,
    ``episode`` and ``meta``, and returns a number or a :class:`Score`.

    Raises:
        RewardError: The function asks for an argument that there is not.
    """
    if function is None:
        return lambda f: reward(f, name=name, when=when)
    return _FunctionReward(function, name, when)


def as_reward(value: RewardLike) -> Reward:
    """The value itself if it is a Reward, a plain function wrapped as one.

    Raises:
        RewardError: It is neither.
    """
    if isinstance(value, Reward):
        return value
    if inspect.isclass(value) and issubclass(value, Reward):
        raise RewardError(f"{value.__name__} is a class; pass an instance, {value.__name__}(...).")
    if not callable(value):
        raise RewardError(f"a reward is a textgym.Reward or a function, not {value!r} ({type(value).__name__}).")
    return _FunctionReward(value, None, "episode")


def one_moment(what: str, rewards: Sequence[Reward]) -> When:
    """The moment at which all of these want to be asked.

    Raises:
        RewardError: There are several; ``what`` is what needs just one.
    """
    whens = frozenset().union(*(member.whens for member in rewards))
    if len(whens) > 1:
        raise RewardError(
            f"{what} needs rewards asked at the same moment, not {', '.join(sorted(whens))}; "
            "give its members the same `when`."
        )
    (when,) = whens
    return when


def gate(condition: Reward, value: Reward, threshold: float = 0.5, otherwise: float = 0.0) -> Reward:
    """``value`` where ``condition`` reaches ``threshold``, else ``otherwise``; both are asked and logged."""
    return _Gate(as_reward(condition), as_reward(value), threshold, otherwise)


_ARGUMENTS: dict[str, Callable[[Episode], Any]] = {
    "prompt": lambda episode: episode.sample.prompt,
    "response": lambda episode: episode.response,
    "references": lambda episode: episode.sample.references,
    "episode": lambda episode: episode,
    "meta": lambda episode: episode.sample.meta,
}


class _FunctionReward(Reward):
    def __init__(self, function: Callable[..., Any], name: str | None, when: When) -> None:
        self.function = function
        given = name if name is not None else str(getattr(function, "__name__", type(function).__name__))
        self.name = "reward" if given == "<lambda>" else given
        self.when = when
        self.arguments = _argument_names(function, self.name)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [
            _as_score(self.function(**{name: _ARGUMENTS[name](episode) for name in self.arguments}))
            for episode in episodes
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as functions are pickled, where a decorator has put this reward in its function's place."""
        place = str(getattr(self.function, "__module__", "")), str(getattr(self.function, "__qualname__", ""))
        try:
            if _named(*place) is self:
                return _named, place
        except (ImportError, AttributeError, ValueError):
            pass  # pickle says itself what is wrong with a function that has no name
        return _FunctionReward, (self.function, self.name, self.when)


def _named(module: str, name: str) -> Any:
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _argument_names(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return tuple(_ARGUMENTS)
    unknown = [
        p.name
        for p in parameters
        if p.kind is not p.VAR_POSITIONAL
        and (p.name not in _ARGUMENTS or p.kind is p.POSITIONAL_ONLY)
        and (p.default is p.empty)
    ]
    if unknown:
        raise RewardError(
            f"the reward function {name!r} asks for {', '.join(map(repr, unknown))}; it may take any of "
            f"{', '.join(map(repr, _ARGUMENTS))} by name, and other arguments only with defaults."
        )
    return tuple(p.name for p in parameters if p.name in _ARGUMENTS)


def _as_score(value: Any) -> Score:
    if isinstance(value, Score):
        return value
    if isinstance(value, (float, int, numbers.Real)) or (hasattr(value, "item") and getattr(value, "size", 1) == 1):
        return Score(float(value))
    raise RewardError(f"a reward function returns a number or a textgym.Score, not {value!r} ({type(value).__name__}).")


def _guarded(leaf: Reward, episodes: Sequence[Episode]) -> list[Score]:
    try:
        scores = list(leaf.score(episodes))
        if len(scores) != len(episodes):
            raise RewardError(f"returned {len(scores)} scores for {len(episodes)} episodes; it must return one each.")
    except Exception as error:  # noqa: BLE001 (whatever a user's reward raises is the score's status, never a score)
        if len(episodes) > 1:
            return [_guarded(leaf, [episode])[0] for episode in episodes]
        scores = [Score(None, status=f"{leaf.name}: {type(error).__name__}: {error}")]
    return [_checked(leaf.name, score) for score in scores]


def _checked(name: str, score: Any) -> Score:
    if not isinstance(score, Score):
        return Score(None, status=f"{name}: returned {score!r} ({type(score).__name__}), not a textgym.Score")
    if score.value is None:
        return score if score.status != "ok" else Score(None, score.parts, f"{name}: returned no value")
    if not math.isfinite(score.value):
        return Score(None, score.parts, f"{name}: returned {score.value}, not a finite number")
    if score.status != "ok":
        return Score(None, score.parts, score.status)
    return Score(float(score.value), dict(score.parts) or {name: float(score.value)})


def _operand(value: Reward | float) -> Reward:
    if isinstance(value, numbers.Real):
        return _Constant(float(value))
    return as_reward(value)  # type: ignore[arg-type]


class _Constant(Reward):
    """Added once an episode."""

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [Score(self.value, {"constant": self.value}) for _ in episodes]


class _Combination(Reward):
    """Asks its children, and combines their values; fails where a child fails, keeping the others' parts."""

    children: list[Reward]

    @abstractmethod
    def combine(self, values: Sequence[float]) -> float: ...

    @property
    def whens(self) -> frozenset[When]:
        return frozenset().union(*(child.whens for child in self.children))

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """All moments at once: what a finished episode earned at its end."""
        by_moment = [self.score_at(when, episodes) for when in WHENS if when in self.whens]
        return [_total(scores) for scores in zip(*by_moment, strict=True)]

    def score_at(self, when: When, episodes: Sequence[Episode]) -> list[Score]:
        if when not in self.whens:
            return [Score(0.0) for _ in episodes]
        columns = [child.score_at(when, episodes) for child in self.children]
        return [self._combined(row) for row in zip(*columns, strict=True)]

    def _combined(self, row: Sequence[Score]) -> Score:
        parts: dict[str, float] = {}
        for score in row:
            for name, value in score.parts.items():
                parts[_free_name(name, parts)] = value
        failed = next((score for score in row if score.value is None), None)
        if failed is not None:
            return Score(None, parts, failed.status)
        return Score(self.combine([score.value for score in row if score.value is not None]), parts)


def _total(scores: Sequence[Score]) -> Score:
    parts: dict[str, float] = {}
    for score in scores:
        for name, value in score.parts.items():  # one leaf may be asked at two moments
            parts[name] = parts.get(name, 0.0) + value
    failed = next((score for score in scores if score.value is None), None)
    if failed is not None:
        return Score(None, parts, failed.status)
    return Score(math.fsum(score.value for score in scores if score.value is not None), parts)


def _free_name(name: str, taken: dict[str, float]) -> str:
    count = 2
    free = name
    while free in taken:
        free = f"{name}_{count}"
        count += 1
    return free


class _Sum(_Combination):
    terms: list[tuple[float, Reward]]

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        flat: list[tuple[float, Reward]] = []
        for weight, term in terms:
            inner: list[tuple[float, Reward]] = term.terms if isinstance(term, _Sum) else [(1.0, term)]
            flat += [(weight * factor, child) for factor, child in inner]
        self.terms = flat
        self.children = [child for _, child in flat]
        self.name = "sum"

    def combine(self, values: Sequence[float]) -> float:
        return math.fsum(weight * value for (weight, _), value in zip(self.terms, values, strict=True))

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {child!r}" for weight, child in self.terms)


class _Product(_Combination):
    def __init__(self, children: Sequence[Reward]) -> None:
        self.children = list(children)
        self.name = "product"
        self.when = one_moment("a product", self.children)

    def combine(self, values: Sequence[float]) -> float:
        return math.prod(values)

    def __repr__(self) -> str:
        return " * ".join(f"({child!r})" for child in self.children)


class _Gate(_Combination):
    def __init__(self, condition: Reward, value: Reward, threshold: float, otherwise: float) -> None:
        self.children = [condition, value]
        self.threshold, self.otherwise = threshold, otherwise
        self.name = "gate"
        self.when = one_moment("a gate", self.children)

    def combine(self, values: Sequence[float]) -> float:
        condition, value = values
        return value if condition >= self.threshold else self.otherwise

    def __repr__(self) -> str:
        condition, value = self.children
        return f"gate({condition!r}, {value!r}, {self.threshold!r}, {self.otherwise!r})"
