"""One conversation as a Gymnasium environment whose actions are tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from textgym.conversation import transcript
from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError
from textgym.rendering import Format
from textgym.rewards import Reward
from textgym.setting import TokenSetting
from textgym.streams import Streams
from textgym.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenEnv"]


class TokenEnv(gymnasium.Env[dict[str, np.ndarray], Any]):
    """A task whose action is the id of the agent's next token.

    The observation is the whole stream, right-padded and append-only within an episode: ``input_ids`` (int64),
    ``attention_mask`` and ``agent_mask`` (int8), each ``(max_context,)``. Padding is known from ``attention_mask``
    alone; ``agent_mask`` is 1 on the tokens that the agent wrote, the one that ends its turn included.

    A turn ends at an end token, at a stop string, or when ``max_new_tokens`` or ``max_context`` is used up. The first
    two hand the turn's text to ``task.respond``, and the episode goes on with its answer; without one, or when a budget
    is used up, the episode *terminates*, since the budgets are part of the task. The environment never truncates.

    A step that earns a reward returns it. One whose reward could not be scored returns 0.0, and an ``info`` with a
    ``score_status`` that is not ``"ok"``. Other keys of ``info``: at reset ``sample_id``; at a turn's end ``response``,
    ``reward_parts`` (the episode's sums so far) and ``score_status`` (the step's; at the end the episode's); at the
    episode's end also ``episode_record`` and ``metrics``.

    Args:
        task: The task.
        reward: A reward or a plain function; the task's own where None.
        split: Which of the task's data.
        tokenizer: A transformers tokenizer, its name or path; the built-in model's where None.
        max_new_tokens: The budget of one turn, its end token included; the task's where None.
        max_context: The width of the observation and the budget of an episode, prompt included; where None, what the
            tokenizer says that the model holds, and at most 1024.
        format: ``"chat"`` (the default where the tokenizer has a chat template) or ``"plain"``.
        render_mode: ``"ansi"``: ``render()`` returns the conversation as text.

    Raises:
        ConfigurationError: An argument cannot work; :class:`~textgym.errors.TokenizerError` where it is the tokenizer.
        DataError: The split is empty.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium declares it)

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
        render_mode: str | None = None,
    ) -> None:
        self.setting = TokenSetting(
            task,
            reward=reward,
            split=split,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            max_context=max_context,
            format=format,
        )
        self.observation_space: spaces.Space[Any] = self.setting.observation_space
        self.action_space: spaces.Space[Any] = self.setting.action_space
        self.render_mode = render_mode
        self._streams = Streams(self.setting, 1)

    @property
    def task(self) -> Task:
        """The task."""
        return self.setting.task

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids are the actions."""
        return self.setting.tokenizer

    @property
    def samples(self) -> Sequence[Sample]:
        """The data of the environment's split."""
        return self.setting.samples

    @property
    def episode(self) -> Episode:
        """The episode under way, or the one that ended last.

        Raises:
            ResetNeeded: There has been none.
        """
        episode = self._streams.episodes[0]
        if episode is None:
            raise ResetNeeded("there is no episode before the first reset.")
        return episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode about a random sample, or about the one of index ``options["sample"]``.

        Raises:
            PromptTooLongError: The sample's prompt leaves no room for a reply.
            ConfigurationError: There is no sample of that index.
        """
        super().reset(seed=seed)
        info = self._streams.begin(0, self.np_random, seed, (options or {}).get("sample"))
        return self._streams.observations_of([0])[0], info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Appends the agent's token, and where it ends the turn, the environment's answer.

        Raises:
            ResetNeeded: The episode is over, or has not begun.
            InvalidAction: The action is no token id.
        """
        tokens = np.asarray(action)
        if tokens.size != 1:
            raise InvalidAction(f"an action is one token id, not {action!r}.")
        rewards, ended, infos = self._streams.advance(tokens.reshape(1))
        return self._streams.observations_of([0])[0], float(rewards[0]), bool(ended[0]), False, infos.get(0, {})

    def step_turn(
        self, ids: Sequence[int] | np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, bool, bool, dict[str, Any]]:
        """Steps the ids one by one until the turn ends.

        Returns:
            As :meth:`step`, with the rewards of all those steps, ``(k,)`` float64. ``info`` is the last step's, with
            ``n_tokens`` = k, and the first ``score_status`` that is not ``"ok"``. k is smaller than ``len(ids)`` where
            the turn ends earlier: what comes after is not used. If the ids run out first, the turn goes on.

        Raises:
            ConfigurationError: There are no ids; an empty reply is its end token.
        """
        if not len(ids):
            raise ConfigurationError("a turn has at least one token: an empty reply is its end token.")
        rewards: list[float] = []
        failed: dict[str, str] = {}
        for token in ids:
            observation, reward, terminated, truncated, info = self.step(token)
            rewards.append(reward)
            if not failed and info.get("score_status", "ok") != "ok":
                failed = {"score_status": info["score_status"]}
            if "response" in info:
                break
        return observation, np.array(rewards), terminated, truncated, {**info, **failed, "n_tokens": len(rewards)}

    def action_masks(self) -> np.ndarray:
        """Which tokens the agent may choose next, ``(len(tokenizer),)`` bool, as sb3-contrib's MaskablePPO asks for.

        Forbidden are a padding token that ends no turn, and what the task forbids. A forbidden token raises nothing.
        """
        return self._streams.action_mask(0)

    def render(self) -> Any:
        """The conversation so far as text, with ``render_mode="ansi"``."""
        return transcript(self.episode) if self.render_mode == "ansi" else None
