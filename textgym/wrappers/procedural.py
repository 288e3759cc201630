"""reasoning-gym's procedural data sets (Stojanovski et al. 2025, arXiv:2505.24760), scored by their own scorers."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from statistics import fmean
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from textgym.data import DataTask, split_of
from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError, PromptTooLongError, TextGymWarning
from textgym.rendering import Renderer, load_tokenizer
from textgym.rewards import Reward, Score
from textgym.text_env import TextEnv
from textgym.token_env import TokenEnv
from textgym.vector_env import TokenVectorEnv
from textgym.wrappers.third_party import Containment, known_name, optional_package

__all__ = ["ReasoningGymTask", "reasoning_gym"]

EXECUTING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Data sets whose scorer hands the reply to ``eval``, by itself or through ``sympy.parse_expr``."""

UNSTABLE = frozenset(
    {
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
"""Data sets whose generator goes through a set of strings, in the order that Python's hash randomisation gives it."""

WRONG: Mapping[str, type[Exception]] = MappingProxyType({"prime_factorization": ValueError})
"""What a scorer raises of a reply that it cannot read, where those of other data sets return 0."""


def reasoning_gym(
    name: str, *, level: str = "token", num_envs: int | None = None, **kwargs: Any
) -> gymnasium.Env | VectorEnv:
    """One of reasoning-gym's data sets as an environment.

    To have it under an id, for ``textgym.make`` and ``textgym.make_vec``, register the task:
    ``textgym.register("my/Legs-v0", task=ReasoningGymTask, name="leg_counting", max_context=512)``.

    Args:
        name: Of the data set: ``"leg_counting"``.
        level: ``"token"`` or ``"turn"``.
        num_envs: So many as one :class:`~textgym.TokenVectorEnv`; where None, one :class:`~textgym.TokenEnv`, or
            :class:`~textgym.TextEnv` at turn level.
        **kwargs: Of the environment (``split``, ``tokenizer``, ``reward``, ``max_new_tokens`` and so on), of
            :class:`ReasoningGymTask` (``size``, ``seed``), and of the data set. With a tokenizer, ``max_context`` is by
            default what the longest prompt and reply need, but no more than the tokenizer says that the model holds.

    Raises:
        ConfigurationError: reasoning-gym is not installed, has no such data set, or refuses its arguments.
        PromptTooLongError: A prompt leaves no room for a reply in what the model holds.
        DataError: The split has no samples.
    """
    environment = _environment(level, num_envs)
    own = {key: kwargs.pop(key) for key in list(kwargs) if key in inspect.signature(environment).parameters}
    task = ReasoningGymTask(name, **kwargs)
    if level == "token" or own.get("tokenizer") is not None:
        own.setdefault("max_context", None)
        if own["max_context"] is None:
            own["max_context"] = _fitting_context(task, **own)
    return environment(task, **own) if num_envs is None else environment(task, num_envs, **own)


class ReasoningGymTask(DataTask):
    """The samples of one of reasoning-gym's data sets, generated when it is made.

    A sample's prompt is the question, its reference the answer (a few data sets give none), its ``meta`` the entry's
    metadata. Which split a question is in depends on a hash of it, so that none is in two of them; ``"all"`` is every
    sample. Same arguments, same samples: what a generator draws from the global random generators, as those of
    ``codeio``, ``list_functions`` and ``pool_matrix`` do, is seeded too, and the global generators are left alone.
    The samples of six data sets also depend on Python's hash randomisation, which is another in every process unless
    PYTHONHASHSEED is set; a warning says so.

    An entry takes microseconds to milliseconds; of ``knight_swap``, ``sokoban``, ``zebra_puzzles`` and ``futoshiki``
    about a second: give those a smaller ``size``.

    The reward is the data set's own scorer on the reply without the white space around it, 0 to 1. What it raises is a
    failed score, but for ``prime_factorization``, whose scorer raises a ValueError of any reply that is no numbers:
    that is a wrong reply, and worth 0. Some short replies keep a scorer busy for ever (``1e999999999`` that of
    ``coin_flip``, ``9**9**9**9`` those that run replies); against them,
    ``reward=Parallel(task.reward, 1, kind="process", timeout=5)``.

    Args:
        name: Of the data set.
        size: How many samples, of all splits together.
        seed: From 0 on.
        allow_code_execution: Nine data sets (``binary_matrix``, ``countdown``, ``intermediate_integration``,
            ``n_queens``, ``polynomial_multiplication``, ``puzzle24``, ``simple_integration``, ``spiral_matrix``,
            ``string_insertion``) score a reply by running it as a Python expression, in this process, without a sandbox
            or a time limit. They are refused unless this says that it is acceptable.
        **config: Of the data set: ``min_animals=3``. For ``"composite"``: ``datasets=[DatasetSpec(...), ...]``.

    Raises:
        ConfigurationError: reasoning-gym is not installed, has no such data set, or refuses the arguments; or the
            scorer runs replies, and that is not allowed.
    """

    headline_metrics = ("solved",)

    def __init__(
        self, name: str, size: int = 500, seed: int = 0, allow_code_execution: bool = False, **config: Any
    ) -> None:
        members = {name, *(spec.name for spec in config.get("datasets", ()))}
        if not allow_code_execution and members & EXECUTING:
            raise ConfigurationError(
                f"the scorer of {', '.join(sorted(members & EXECUTING))} runs every reply as a Python expression, "
                "without a sandbox: whatever the agent writes is executed. If that is acceptable, say "
                "allow_code_execution=True."
            )
        if members & UNSTABLE and os.environ.get("PYTHONHASHSEED", "random") in ("", "random"):
            warnings.warn(
                f"reasoning-gym generates {', '.join(sorted(members & UNSTABLE))} otherwise in every process; set the "
                "environment variable PYTHONHASHSEED=0 before Python starts to have the same samples again.",
                TextGymWarning,
                stacklevel=2,
            )
        self.name = name
        self.reward = ReasoningGymScore(name, size=size, seed=seed, **config)
        contained = Containment()
        by_split: dict[str, list[Sample]] = {}
        for index in range(size):
            contained.seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
            with contained:
                entry = self.reward.dataset[index]
            by_split.setdefault(split_of(entry["question"]), []).append(_sample(f"{name}/{index}", entry))
        super().__init__(by_split)
        self._name = f"reasoning-gym's {name}"
        self.max_new_tokens = max(type(self).max_new_tokens, self._longest_answer())

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The share of replies with full marks, where the data set's own scorer is among the rewards."""
        scores = [
            episode.reward_parts[ReasoningGymScore.name]
            for episode in episodes
            if ReasoningGymScore.name in episode.reward_parts
        ]
        return {"solved": fmean(score == 1.0 for score in scores)} if scores else {}

    def _longest_answer(self) -> int:
        """As many tokens as the longest answer needs in any tokenizer: its bytes, a dummy prefix, its end token."""
        references = [reference for sample in self.samples("all") for reference in sample.references]
        return max((len(reference.encode()) for reference in references), default=0) + 2


class ReasoningGymScore(Reward):
    """``score_answer`` of a reasoning-gym data set. Pickled by its arguments: some data sets hold functions.

    Args:
        dataset_name: The data set's name.
        **config: Its arguments, ``size`` and ``seed`` among them.

    Attributes:
        dataset: The data set.

    Raises:
        ConfigurationError: reasoning-gym is not installed, has no such data set, or refuses the arguments.
    """

    name = "reasoning_gym"

    def __init__(self, dataset_name: str, **config: Any) -> None:
        self.dataset_name = dataset_name
        self.config = config
        self.dataset = _made(dataset_name, **config)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ReasoningGymScore, self.dataset_name, **self.config), ()

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The data set's scores, 0 to 1; may raise whatever the scorer raises."""
        return [Score(self._value(episode)) for episode in episodes]

    def _value(self, episode: Episode) -> float:
        sample = episode.sample
        answer = sample.references[0] if sample.references else None
        entry = {"question": sample.prompt, "answer": answer, "metadata": sample.meta}
        source = sample.meta.get("source_dataset", self.dataset_name)
        try:
            return float(self.dataset.score_answer(episode.response.strip(), entry))
        except WRONG.get(source, ()):
            return 0.0


def _environment(level: str, num_envs: int | None) -> Any:
    if level not in ("token", "turn"):
        raise ConfigurationError(f"level={level!r}; it is 'token' or 'turn'.")
    if num_envs is None:
        return TokenEnv if level == "token" else TextEnv
    if level == "turn":
        raise ConfigurationError(f"num_envs={num_envs}: only token level has a vector form.")
    return TokenVectorEnv


def _made(name: str, **config: Any) -> Any:
    package = optional_package("reasoning_gym", "reasoning-gym")
    known = optional_package("reasoning_gym.factory", "reasoning-gym").DATASETS
    known_name(name, known, "data set of reasoning-gym")
    for argument, least in (("size", 1), ("seed", 0)):
        value = config[argument]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ConfigurationError(f"{argument}={value!r}; it is a whole number, at least {least}.")
    try:
        with Containment():
            return package.create_dataset(name, **config)
    except (TypeError, ValueError, AssertionError) as error:
        accepted = ", ".join(field.name for field in fields(known[name][1]))
        raise ConfigurationError(
            f"reasoning-gym's {name} refuses its arguments: {error}. It takes {accepted}."
        ) from error


def _sample(id: str, entry: Mapping[str, Any]) -> Sample:
    answer = entry["answer"]
    return Sample(id, entry["question"], () if answer is None else (answer,), entry["metadata"])


def _fitting_context(
    task: ReasoningGymTask,
    *,
    split: str = "train",
    tokenizer: Any = None,
    format: Any = None,
    max_new_tokens: int | None = None,
    **others: Any,
) -> int:
    tokenizer = load_tokenizer(tokenizer)
    renderer = Renderer(tokenizer, format)
    lengths = [len(renderer.prompt_ids(sample)) for sample in task.samples(split)]
    held = int(tokenizer.model_max_length)
    if max(lengths) >= held:
        too_long = sum(length >= held for length in lengths)
        raise PromptTooLongError(
            f"{too_long} of {len(lengths)} prompts of {task.name} leave no room for a reply in the {held} tokens that "
            f"the model holds, as its tokenizer says; the longest has {max(lengths)}. Take another model, or make the "
            "questions shorter with the data set's arguments; or set max_context yourself."
        )
    return min(max(lengths) + (task.max_new_tokens if max_new_tokens is None else max_new_tokens), held)
