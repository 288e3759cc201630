"""What all episodes of an environment share: the task, its data, its reward; at token level, the rules of tokens."""

from __future__ import annotations

import copy
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError, DataError, PromptTooLongError, TextGymWarning
from textgym.rendering import Format, Renderer, load_tokenizer
from textgym.rewards import Reward, as_reward
from textgym.rewards.core import WHENS, When
from textgym.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MAX_CONTEXT", "Setting", "TokenSetting", "stop_position", "stop_strings"]

MAX_CONTEXT = 1024
"""The default context, where the tokenizer allows as much: every stored observation is as wide as the context."""

SHOWN = 3  # prompts that are too long, in an error


def stop_strings(task: Task) -> tuple[str, ...]:
    """Those of the task."""
    return (task.stop,) if isinstance(task.stop, str) else tuple(task.stop)


def stop_position(text: str, stop: Iterable[str]) -> int | None:
    """Where the first of the stop strings in the text begins, None if there is none."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


class Setting:
    """A task, one split of its data and a reward.

    Args:
        task: The task.
        reward: A reward, or a plain function; the task's own where None.
        split: Which of the task's data.
        max_new_tokens: The budget of one turn of the agent; the task's where None.

    Attributes:
        task: The task, or a copy of it with that budget.

    Raises:
        ConfigurationError: The task is none, there is no reward, or the budget is not a positive whole number.
        DataError: The split has no samples.
    """

    def __init__(
        self,
        task: Task,
        *,
        reward: Reward | Callable[..., Any] | None = None,
        split: str = "train",
        max_new_tokens: int | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise ConfigurationError(f"task={task!r} is no textgym.Task; pass an instance of a subclass of it.")
        given = task.reward if reward is None else reward
        if given is None:
            raise ConfigurationError(f"the task {type(task).__name__} has no reward of its own; pass reward=...")
        self.max_new_tokens = _positive("max_new_tokens", max_new_tokens, task.max_new_tokens)
        if self.max_new_tokens != task.max_new_tokens:
            task = copy.copy(task)
            task.max_new_tokens = self.max_new_tokens
        self.task = task
        self.reward = as_reward(given)
        self.split = split
        self.samples: Sequence[Sample] = task.samples(split)
        if not len(self.samples):
            raise DataError(
                f"the split {split!r} of {type(task).__name__} has no samples; choose another one with split=..., or "
                "give data with data=..."
            )
        self.whens: tuple[When, ...] = tuple(when for when in WHENS if when in self.reward.whens)
        self.stop = stop_strings(task)

    def draw(self, rng: np.random.Generator, index: int | None = None) -> int:
        """The index of the sample that an episode is about: the given one, or a random one."""
        if index is None:
            return int(rng.integers(len(self.samples)))
        try:
            index = operator.index(index)
        except TypeError:
            raise ConfigurationError(f"options['sample'] is the index of a sample, not {index!r}.") from None
        if not 0 <= index < len(self.samples):
            raise ConfigurationError(
                f"options['sample'] is {index}; the split {self.split!r} has samples 0 to {len(self.samples) - 1}."
            )
        return index


class TokenSetting(Setting):
    """A setting with a tokenizer and with budgets of tokens.

    Args:
        task: The task.
        reward: A reward, or a plain function; the task's own where None.
        split: Which of the task's data.
        tokenizer: A tokenizer, its name or path; the built-in model's where None.
        max_new_tokens: The budget of one turn of the agent, its end token included; the task's where None.
        max_context: The budget of a whole episode, prompt included. Where None, what the tokenizer says that the model
            can hold, and at most ``MAX_CONTEXT``.
        format: ``"chat"`` or ``"plain"``, see :class:`~textgym.rendering.Renderer`.

    Attributes:
        observation_space: ``Dict(input_ids, attention_mask, agent_mask)``, each ``(max_context,)``.
        action_space: ``Discrete(len(tokenizer))``.
        is_end_token: ``(len(tokenizer),)`` bool.

    Raises:
        ConfigurationError: A budget is not a positive whole number; and what :class:`Setting` raises.
        TokenizerError: The tokenizer cannot be loaded or used.
    """

    def __init__(
        self,
        task: Task,
        *,
        reward: Reward | Callable[..., Any] | None = None,
        split: str = "train",
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        max_new_tokens: int | None = None,
        max_context: int | None = None,
        format: Format | None = None,
    ) -> None:
        super().__init__(task, reward=reward, split=split, max_new_tokens=max_new_tokens)
        self.tokenizer = load_tokenizer(tokenizer)
        self.renderer = Renderer(self.tokenizer, format)
        self.vocabulary_size = len(self.tokenizer)
        self.max_context = _positive("max_context", max_context, min(self.tokenizer.model_max_length, MAX_CONTEXT))
        if task.is_multi_turn or any(not isinstance(sample.prompt, str) for sample in self.samples):
            self.stop += self.renderer.message_stops
        if task.is_multi_turn and self.renderer.rewrites_history:
            warnings.warn(
                "the tokenizer's chat template rewrites earlier turns of a conversation (it may drop their reasoning); "
                "an episode's tokens are append-only, so the model will see its earlier turns as it wrote them.",
                TextGymWarning,
                stacklevel=2,
            )
        self.observation_space, self.action_space = self._spaces()
        self.is_end_token = np.isin(np.arange(self.vocabulary_size), list(self.renderer.end_tokens))
        self._prompts: dict[int, tuple[Sample, np.ndarray]] = {}
        self._stop_table = np.zeros(self.vocabulary_size, np.int8)  # 0 not looked up, 1 harmless, 2 may complete a stop

    def prompt_ids(self, index: int) -> np.ndarray:
        """The ids of a sample's prompt, ``(length,)`` int64; tokenised once, while the sample is the same.

        Raises:
            PromptTooLongError: It leaves no room for a reply.
        """
        sample = self.samples[index]
        if index not in self._prompts or self._prompts[index][0] is not sample:
            self._prompts[index] = sample, self._fitting(sample, self.renderer.prompt_ids(sample))
        return self._prompts[index][1]

    def begin_with(self, index: int, ids: Sequence[int]) -> None:
        """Lets episodes about a sample begin with these ids in place of its rendered prompt.

        Raises:
            PromptTooLongError: They leave no room for a reply.
        """
        sample = self.samples[index]
        self._prompts[index] = sample, self._fitting(sample, ids)

    def check_prompts(self, samples: Iterable[Sample]) -> None:
        """Makes sure that episodes about these samples can begin, before much has been done for them.

        Raises:
            PromptTooLongError: Some prompts leave no room for a reply; the message names the first few.
        """
        distinct = {id(sample): sample for sample in samples}.values()  # the warm start's are often the train split's
        lengths = dict.fromkeys((sample.id, len(self.renderer.prompt_ids(sample))) for sample in distinct)
        too_long = [(id, length) for id, length in lengths if length >= self.max_context]
        if too_long:
            shown = ", ".join(f"{id!r} with {length} tokens" for id, length in too_long[:SHOWN])
            raise PromptTooLongError(
                f"{len(too_long)} of {len(lengths)} prompts leave no room for a reply in max_context="
                f"{self.max_context}: {shown}{' and others' * (len(too_long) > SHOWN)}. Set max_context to more than "
                f"{max(length for _, length in too_long)}, if the model can hold that; or shorten these samples, or "
                "drop them from the data."
            )

    def action_mask(self, episode: Episode | None) -> np.ndarray:
        """Which tokens the agent may choose, ``(len(tokenizer),)`` bool."""
        mask = self._allowed.copy()
        if episode is not None and self._forbids:
            mask[list(self.task.forbidden_tokens(episode, self._vocabulary))] = False
        return mask

    def may_complete_stop(self, tokens: np.ndarray) -> np.ndarray:
        """Whether each token may hold the last character of a stop string, ``(n,)`` bool."""
        unknown = tokens[self._stop_table[tokens] == 0]
        for token, text in zip(unknown.tolist(), self.renderer.decode(unknown[:, None]), strict=True):
            self._stop_table[token] = 2 if any(_may_hold(text, stop[-1]) for stop in self.stop) else 1
        return self._stop_table[tokens] == 2

    def _fitting(self, sample: Sample, prompt_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(prompt_ids, dtype=np.int64)
        if not len(ids):
            raise ConfigurationError(
                f"the prompt of sample {sample.id!r} has no tokens; an episode needs at least one."
            )
        if len(ids) >= self.max_context:
            raise PromptTooLongError(
                f"the prompt of sample {sample.id!r} has {len(ids)} tokens, and max_context={self.max_context} leaves "
                f"no room for a reply; shorten or drop the sample, or set max_context to more than {len(ids)}."
            )
        return ids

    def _spaces(self) -> tuple[spaces.Dict, spaces.Discrete]:
        def mask() -> spaces.Box:
            return spaces.Box(0, 1, (self.max_context,), np.int8)

        ids = spaces.Box(0, self.vocabulary_size - 1, (self.max_context,), np.int64)
        observations = spaces.Dict({"input_ids": ids, "attention_mask": mask(), "agent_mask": mask()})
        return observations, spaces.Discrete(self.vocabulary_size)

    @cached_property
    def _allowed(self) -> np.ndarray:
        allowed = np.ones(self.vocabulary_size, dtype=bool)
        pad = self.tokenizer.pad_token_id
        if pad is not None and pad < self.vocabulary_size and pad not in self.renderer.end_tokens:
            allowed[pad] = False
        return allowed

    @cached_property
    def _forbids(self) -> bool:
        return type(self.task).forbidden_tokens is not Task.forbidden_tokens

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()


def _may_hold(text: str, character: str) -> bool:
    """Whether a token that decodes to this text on its own may hold the character.

    A part of a character, which is never ASCII, decodes to U+FFFD; and some decoders drop a blank at the start.
    """
    return character in text or character.isspace() or (not character.isascii() and "\ufffd" in text)


def _positive(name: str, value: int | None, default: int) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigurationError(f"{name}={value!r}; it is a whole number of tokens, at least 1.")
    return int(value)
