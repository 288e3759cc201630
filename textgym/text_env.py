"""The same tasks with text in and text out: for models behind an API, and for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from textgym.conversation import outcome, score_turns, take_reply, transcript
from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError
from textgym.rendering import Format
from textgym.rewards import Reward
from textgym.setting import Setting
from textgym.task import Task
from textgym.token_env import TokenEnv

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEnv", "UnicodeText"]

MAX_CHARACTERS = 2**20


class UnicodeText(spaces.Text):
    """All strings of up to ``max_length`` characters; Gymnasium's own Text holds letters and digits only."""

    def __init__(self, max_length: int = MAX_CHARACTERS, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether it is a string, and not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string of printable characters and some beyond ASCII; ``mask`` is not supported.

        Raises:
            ValueError: A mask is given.
        """
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText has no characters to mask.")
        codes = self.np_random.choice(
            [*range(32, 127), 10, 0xE9, 0x3B1, 0x6F22, 0x1F600], size=self.np_random.integers(33)
        )
        return "".join(map(chr, codes))[: self.max_length]

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length


class TextEnv(gymnasium.Env[str, str]):
    """A task whose action is the agent's whole reply, and whose observation is what the environment says.

    The observation is the prompt (messages as ``role: text`` lines), then each answer of the task, and ``""`` when the
    episode is over. ``info["messages"]`` is the conversation so far as chat messages; the other keys of ``info`` are
    those of :class:`~textgym.TokenEnv`, and so are samples, seeds, scores and ends of episodes.

    With a tokenizer a reply is tokenised, and the token environment's budgets hold: the same transitions exactly.
    Without one there are no budgets, and a reward that is asked after each token is asked once a turn.

    Args:
        task: The task.
        reward: A reward or a plain function; the task's own where None.
        split: Which of the task's data.
        tokenizer: None for none (not the built-in model's); else a transformers tokenizer, its name or path.
        max_new_tokens: The budget of a turn. Without a tokenizer it is what the task tells agents, which keep to it.
        max_context, format: As in :class:`~textgym.TokenEnv`; without effect if there is no tokenizer.
        render_mode: ``"ansi"``: ``render()`` returns the conversation as text.

    Raises:
        ConfigurationError: An argument cannot work.
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
        self.render_mode = render_mode
        self.observation_space: spaces.Space[str] = UnicodeText()
        self.action_space: spaces.Space[str] = UnicodeText()
        self._tokens: TokenEnv | None = None
        self._episode: Episode | None = None
        if tokenizer is not None:
            limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_context": max_context, "format": format}
            self._tokens = TokenEnv(task, reward=reward, split=split, tokenizer=tokenizer, **limits)
            self.setting: Setting = self._tokens.setting
        else:
            self.setting = Setting(task, reward=reward, split=split, max_new_tokens=max_new_tokens)

    @property
    def task(self) -> Task:
        """The task."""
        return self.setting.task

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
        if self._tokens is not None:
            return self._tokens.episode
        if self._episode is None:
            raise ResetNeeded("there is no episode before the first reset.")
        return self._episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode about a random sample, or about the one of index ``options["sample"]``.

        Raises:
            ConfigurationError: There is no sample of that index.
            PromptTooLongError: With a tokenizer: the sample's prompt leaves no room for a reply.
        """
        super().reset(seed=seed)
        if self._tokens is not None:
            self._tokens.np_random = self.np_random
            self._tokens.reset(options=options)
            self._tokens.episode.seed = seed
        else:
            index = self.setting.draw(self.np_random, (options or {}).get("sample"))
            self._episode = Episode(self.setting.samples[index], seed=seed)
        prompt = self.episode.sample.prompt
        text = prompt if isinstance(prompt, str) else transcript(self.episode)
        return text, {"sample_id": self.episode.sample.id, "messages": self.episode.messages}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the agent's reply, and gives the environment's answer.

        Raises:
            ResetNeeded: The episode is over, or has not begun.
            InvalidAction: The action is no string.
        """
        if not isinstance(action, str):
            raise InvalidAction(f"an action is the reply's text, not {action!r}.")
        if self.episode.stop_reason is not None:
            raise ResetNeeded("the episode is over: call reset before step.")
        reward, info = self._step_text(action) if self._tokens is None else self._step_tokens(self._tokens, action)
        over = self.episode.stop_reason is not None
        info["messages"] = self.episode.messages
        return "" if over else self.episode.turns[-1].text, reward, over, False, info

    def render(self) -> Any:
        """The conversation so far as text, with ``render_mode="ansi"``."""
        return transcript(self.episode) if self.render_mode == "ansi" else None

    def _step_tokens(self, tokens: TokenEnv, text: str) -> tuple[float, dict[str, Any]]:
        renderer = tokens.setting.renderer
        if renderer.end_token is None:
            raise ConfigurationError(
                "the tokenizer has no end token to end a reply with; make the environment without it."
            )
        _, rewards, _, _, info = tokens.step_turn(renderer.reply_ids(text))
        del info["n_tokens"]
        return float(rewards.sum()) if info["score_status"] == "ok" else 0.0, info

    def _step_text(self, text: str) -> tuple[float, dict[str, Any]]:
        take_reply(self.setting, self.episode, text, "eos", self.np_random)
        ((reward, status),) = score_turns(self.setting, [self.episode])
        return reward, outcome(self.setting, self.episode, status)
