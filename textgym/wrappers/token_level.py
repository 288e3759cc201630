"""Any Gymnasium environment of texts, token by token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError
from textgym.hashing import hashed_id
from textgym.rendering import Format
from textgym.rewards import Reward, Score
from textgym.task import Task
from textgym.token_env import TokenEnv

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenLevel"]


class TokenLevel(TokenEnv):
    """An environment whose observations and actions are texts, with tokens for actions.

    Observations, actions and infos are those of :class:`~textgym.TokenEnv`. The first observation of the wrapped
    environment is the user's first message, each later one is appended as the user's next message, and the agent's
    whole turn is one action of it. The reward of that action comes with the turn's last token; a ``score_status`` that
    is not ``"ok"`` in the wrapped environment's ``info`` marks it as failed. ``terminated`` and ``truncated`` are
    passed on; an observation that ends an episode is not appended, since no reply follows it.

    A budget that runs out terminates the episode, with the stop reason ``"length"`` or ``"context"``. The unfinished
    turn is then the last action that the wrapped environment gets, so that rambling escapes no penalty.

    ``info["env_info"]`` is the wrapped environment's ``info`` of the reset and of each turn.

    The wrapped environment holds the episode, so there is one episode an instance; agents take several as SB3's
    ``DummyVecEnv([make] * 8)``.

    Args:
        env: Its spaces are :class:`gymnasium.spaces.Text`. Any text is passed on, whatever characters and length its
            action space allows.
        tokenizer: A transformers tokenizer, its name or path; the built-in model's where None.
        max_new_tokens: The budget of one turn, its end token included.
        max_context: The width of the observation and the budget of an episode; see :class:`~textgym.TokenEnv`.
        format: ``"chat"`` (the default where the tokenizer has a chat template) or ``"plain"``.
        stop: Strings that end the agent's turn as soon as its text contains one; the text is cut before it.
        render_mode: ``"ansi"``: ``render()`` returns the conversation as text.

    Attributes:
        env: The wrapped environment.

    Raises:
        ConfigurationError: A space holds no texts, or an argument cannot work.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, str],
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        *,
        max_new_tokens: int | None = None,
        max_context: int | None = None,
        format: Format | None = None,
        stop: str | Sequence[str] = (),
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(env, gymnasium.Env):
            raise ConfigurationError(f"TokenLevel takes a gymnasium.Env, not {env!r}.")
        for kind, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, spaces.Text):
                raise ConfigurationError(
                    f"TokenLevel takes an environment whose {kind} space is a gymnasium.spaces.Text; this one's is "
                    f"{space}."
                )
        self.env = env
        self._env_task = _EnvTask(env, stop)
        super().__init__(
            self._env_task,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            max_context=max_context,
            format=format,
            render_mode=render_mode,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Resets the wrapped environment with this seed and these options; its observation is the prompt.

        Raises:
            PromptTooLongError: The observation leaves no room for a reply.
            ConfigurationError: The observation is no text.
        """
        text, env_info = self.env.reset(seed=seed, options=options)
        self._env_task.open(text)
        observation, info = super().reset(seed=seed)
        return observation, {**info, "env_info": env_info}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Appends the agent's token; where it ends the turn, steps the wrapped environment.

        Raises:
            ResetNeeded: The episode is over, or has not begun.
            InvalidAction: The action is no token id.
            ConfigurationError: The wrapped environment's observation is no text.
        """
        observation, reward, terminated, truncated, info = super().step(action)
        if "response" in info:
            said = self._env_task.step(self.episode)
            info["env_info"] = said.info
            if self.episode.stop_reason == "task":
                terminated, truncated = said.terminated, said.truncated
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Closes the wrapped environment."""
        self.env.close()


class _Said(NamedTuple):
    """What the wrapped environment said of one turn."""

    text: str
    reward: Any
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class _EnvTask(Task):
    """The wrapped environment as a task whose one sample is the episode under way."""

    def __init__(self, env: gymnasium.Env[str, str], stop: str | Sequence[str]) -> None:
        self.env = env
        self.stop = stop
        self.reward = _EnvReward(self)
        self._sample = [_sample("")]  # a setting wants a sample before the first reset

    def samples(self, split: str) -> Sequence[Sample]:
        return self._sample

    def open(self, text: str) -> None:
        _check_text(text)
        self._sample[0] = _sample(text)

    def respond(self, episode: Episode, rng: np.random.Generator) -> str | None:
        said = self.step(episode)
        return None if said.terminated or said.truncated else said.text

    def step(self, episode: Episode) -> _Said:
        """Steps the wrapped environment with the agent's last turn, if it has not had it yet."""
        turns = len(episode.responses)
        if episode.state.get("turns") != turns:
            said = _Said(*self.env.step(episode.response))
            _check_text(said.text)
            episode.state.update(turns=turns, said=said)
        return episode.state["said"]


class _EnvReward(Reward):
    """The reward of the wrapped environment's last step."""

    name = "env"
    when = "turn"

    def __init__(self, task: _EnvTask) -> None:
        self.task = task

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [self._score(self.task.step(episode)) for episode in episodes]

    def _score(self, said: _Said) -> Score:
        status = str(said.info.get("score_status", "ok"))
        return Score(float(said.reward)) if status == "ok" else Score(None, status=status)


def _sample(text: str) -> Sample:
    return Sample(hashed_id(text), [{"role": "user", "content": text}])


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ConfigurationError(
            f"the wrapped environment's observation is {text!r} ({type(text).__name__}); TokenLevel needs a str."
        )
