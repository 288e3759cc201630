"""Rewards around a reward: clipped, standardised, shaping by a potential.

Each takes plain functions where it takes rewards. Weights, sums, products and gates are in :mod:`textgym.rewards.core`,
time limits and concurrent scoring in :mod:`textgym.rewards.parallel`.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from textgym.episode import Episode
from textgym.errors import RewardError
from textgym.rewards.core import Reward, RewardLike, Score, When, as_reward, one_moment

__all__ = ["RunningMoments", "Shaping", "ZScore", "clip"]

SPREAD_OF_ROUNDING = 1e-12
"""Relative to the mean: a standard deviation below it is what rounding makes of numbers that are all equal."""


# ----------------------------------------------------------------------- values


def clip(reward: RewardLike, low: float, high: float) -> Reward:
    """``reward`` kept between ``low`` and ``high`` each time that it is asked; its parts are logged unclipped.

    Raises:
        RewardError: ``low`` is above ``high``, or the reward is asked at several moments, each of which would be
            clipped by itself.
    """
    return _Clip(as_reward(reward), low, high)


class _Clip(Reward):
    def __init__(self, reward: Reward, low: float, high: float) -> None:
        if not low <= high:
            raise RewardError(f"clip(low={low}, high={high}): low is at most high, and neither is nan.")
        self.reward, self.low, self.high = reward, low, high
        self.when = one_moment("a clip", [reward])

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        scores = self.reward.score_at(self.when, episodes)
        return [_mapped(score, lambda value: min(max(value, self.low), self.high)) for score in scores]


def _mapped(score: Score, function: Callable[[float], float]) -> Score:
    return score if score.value is None else replace(score, value=function(score.value))


class RunningMoments:
    """The count, mean and variance of all numbers seen so far, without keeping them.

    Attributes:
        count: How many.
        mean: 0.0 where there are none.
        variance: The population's (divided by the count), 0.0 where there are none.
    """

    def __init__(self, count: int = 0, mean: float = 0.0, variance: float = 0.0) -> None:
        self.count, self.mean, self.variance = count, mean, variance

    def update(self, values: Sequence[float]) -> None:
        """Adds a batch of finite numbers.

        Two sets with means m1 and m2, and sums of squares about them M1 and M2, have together the sum of squares
        M1 + M2 + (m2 - m1)^2 n1 n2 / (n1 + n2) (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
        for Computing Sample Variances", 1979, equation 2.1b; for a batch of one it is Welford's).
        """
        if not len(values):
            return
        batch = np.asarray(values, dtype=np.float64)
        share = len(batch) / (self.count + len(batch))
        delta = float(batch.mean()) - self.mean
        self.variance += share * (float(batch.var()) - self.variance) + share * (1 - share) * delta**2
        self.mean += share * delta
        self.count += len(batch)

    def standardised(self, value: float) -> float:
        """The number of standard deviations above the mean; 0.0 as long as the numbers seen do not differ."""
        deviation = math.sqrt(self.variance)
        return 0.0 if deviation <= SPREAD_OF_ROUNDING * abs(self.mean) else (value - self.mean) / deviation


class ZScore(Reward):
    """``(value - mean) / standard deviation``, of everything that this object has scored so far.

    The batch to score enters the moments first, so the first one is standardised too. While all values are equal, as
    a single one is, the z-score is 0.0. Failed scores do not enter. The parts are logged as they are.

    A score then depends on history: the same episode is worth something else later, evaluations and other splits that
    use the same object move its moments too, and ``textgym.check_env`` will say that the reward does not depend on the
    episode alone. To go on elsewhere, save :meth:`state_dict` with the agent. Moments cannot be shared with another
    process: the other way round, ``ZScore(Parallel(...))``, it works.

    Args:
        reward: What to standardise.
        clip: Keeps z-scores between ``-clip`` and ``clip``.

    Attributes:
        moments: The :class:`RunningMoments`.

    Raises:
        RewardError: ``clip`` is not positive, or the reward is asked at several moments.
    """

    def __init__(self, reward: RewardLike, clip: float | None = None) -> None:
        if clip is not None and not clip > 0:
            raise RewardError(f"ZScore(clip={clip}): it is a positive number of standard deviations, or None.")
        self.reward = as_reward(reward)
        self.when = one_moment("a z-score", [self.reward])
        self.clip = math.inf if clip is None else clip
        self.moments = RunningMoments()
        self._lock = threading.Lock()

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The z-scores, after the moments have taken in the values."""
        scores = self.reward.score_at(self.when, episodes)
        with self._lock:
            self.moments.update([score.value for score in scores if score.value is not None])
            return [_mapped(score, self._z_score) for score in scores]

    def _z_score(self, value: float) -> float:
        return min(max(self.moments.standardised(value), -self.clip), self.clip)

    def state_dict(self) -> dict[str, float]:
        """``count``, ``mean`` and ``variance``, to save."""
        return dict(vars(self.moments))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from saved moments.

        Raises:
            RewardError: They are no moments.
        """
        names = vars(self.moments).keys()
        if (
            state.keys() != names
            or not all(map(math.isfinite, state.values()))
            or min(state["count"], state["variance"]) < 0
        ):
            raise RewardError(
                f"the moments of a z-score are {', '.join(names)}, as state_dict() gives them, not {state}."
            )
        self.moments = RunningMoments(int(state["count"]), state["mean"], state["variance"])

    def __reduce__(self) -> str:
        raise RewardError(
            "a z-score cannot be sent to another process, where its moments would be others; put it around what is "
            "sent, as in ZScore(Parallel(...))."
        )


# --------------------------------------------------------------------- potentials

_numbers = itertools.count()


class Shaping(Reward):
    """Potential-based shaping: a dense reward, after each token, that changes which policy is best in nothing.

    A token that leads from state s to s' earns ``gamma * potential(s') - potential(s)`` (Ng, Harada and Russell,
    "Policy invariance under reward transformations", 1999, equation 2), and the potential of an episode's end is 0
    (Grześ, "Reward shaping in episodic reinforcement learning", 2017). Discounted by the same gamma, these rewards add
    up to ``-potential(s0)``, whatever the agent does; s0 is the episode without a turn. An episode that is truncated
    has no such end, and its value is bootstrapped, as it should be. Added to another reward
    (``Abstain() + 0.1 * Shaping(f)``) it says early on what is promising.

    In the state after a token, ``response`` is the turn as it stands, usually unfinished; what the environment answers
    comes in with the next token. At turn level the tokens of a turn are one step.

    The potential of the last state is kept in ``episode.state``, under a name of this object's own, so that it goes
    with the episode through batches, vector environments and copies.

    Args:
        potential: A function of an episode as rewards are (of ``response``, ``references`` and so on), or a reward
            whose value is the potential. It depends on the episode alone.
        gamma: The agent's discount.

    Raises:
        RewardError: ``gamma`` is not above 0 and at most 1, or the potential is no reward of a single moment.
    """

    when = "token"

    def __init__(self, potential: RewardLike, gamma: float = 1.0) -> None:
        if not 0 < gamma <= 1:
            raise RewardError(f"Shaping(gamma={gamma}): it is the agent's discount, above 0 and at most 1.")
        self.potential, self.gamma = as_reward(potential), gamma
        self._moment = one_moment("a potential", [self.potential])
        self._key = f"{self.name}_{next(_numbers)}"

    @property
    def whens(self) -> frozenset[When]:
        """After each token; and at the end of the episode, whose potential is then known to be 0."""
        return frozenset({"token", "episode"})

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The discounted sum over finished episodes: ``-potential(s0)``."""
        return [self._shaped(start, lambda value: -value) for start in self._potentials(map(_start, episodes))]

    def score_at(self, when: When, episodes: Sequence[Episode]) -> list[Score]:
        """The step of a token, or what the end takes back of the last one."""
        if when == "token":
            return self._steps(episodes)
        return [self._end(episode) if when == "episode" else Score(0.0) for episode in episodes]

    def _steps(self, episodes: Sequence[Episode]) -> list[Score]:
        new = [episode for episode in episodes if self._key not in episode.state]
        potentials = self._potentials([*episodes, *map(_start, new)])
        starts = dict(zip(map(id, new), potentials[len(episodes) :], strict=True))
        return [
            self._step(episode, starts.get(id(episode)) or Score(episode.state[self._key]), potential)
            for episode, potential in zip(episodes, potentials, strict=False)  # the starts come after
        ]

    def _step(self, episode: Episode, before: Score, after: Score) -> Score:
        before_value = before.value
        if before_value is None:
            return self._shaped(before)
        if after.value is not None:
            episode.state[self._key] = after.value
        return self._shaped(after, lambda value: self.gamma * value - before_value)

    def _end(self, episode: Episode) -> Score:
        """The last token's step was taken before anyone knew that the episode ends with it."""
        if self._key not in episode.state:
            return Score(None, status=f"{self.name}: the episode has ended without the score of a token")
        return self._shaped(Score(episode.state.pop(self._key)), lambda value: -self.gamma * value)

    def _potentials(self, episodes: Iterable[Episode]) -> list[Score]:
        return self.potential.score_at(self._moment, list(episodes))

    def _shaped(self, potential: Score, function: Callable[[float], float] = float) -> Score:
        if potential.value is None:
            return Score(None, status=f"{self.name}: {potential.status}")
        value = function(potential.value)
        return Score(value, {self.name: value})


def _start(episode: Episode) -> Episode:
    return Episode(episode.sample, seed=episode.seed)
