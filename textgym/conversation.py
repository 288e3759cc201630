"""The rules of an episode that know nothing of tokens: how turns follow each other, are scored and are reported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from textgym.episode import Episode, StopReason, Turn
from textgym.errors import ConfigurationError
from textgym.rewards import Reward, Score
from textgym.rewards.core import When
from textgym.setting import Setting, stop_position
from textgym.texts import whole

__all__ = ["add_scores", "ask", "close_turn", "outcome", "score_turns", "take_reply", "transcript"]


def close_turn(
    setting: Setting, episode: Episode, text: str, reason: StopReason, rng: np.random.Generator
) -> str | None:
    """Ends the agent's turn. The environment's answer, not yet in ``episode.turns``; None where the episode ends.

    Raises:
        ConfigurationError: The task answered with something else than a text or None.
    """
    episode.turns.append(Turn("assistant", text))
    if reason in ("length", "context"):
        episode.stop_reason = reason
        return None
    answer = setting.task.respond(episode, rng)
    if answer is None:
        episode.stop_reason = "task" if setting.task.is_multi_turn else reason
    elif not isinstance(answer, str):
        raise ConfigurationError(
            f"{type(setting.task).__name__}.respond returned {answer!r} ({type(answer).__name__}); it returns the "
            "environment's next message, a str, or None to end the episode."
        )
    return None if answer is None else whole(answer)


def take_reply(setting: Setting, episode: Episode, text: str, reason: StopReason, rng: np.random.Generator) -> None:
    """The agent's reply in a conversation without tokens, and the environment's answer or the end.

    Args:
        setting: The episode's.
        episode: Under way.
        text: What the agent says.
        reason: Why it ended there.
        rng: The environment's chance.
    """
    stop = stop_position(text, setting.stop)
    answer = close_turn(setting, episode, text[:stop], reason if stop is None else "stop_string", rng)
    if answer is not None:
        episode.turns.append(Turn("user", answer))


def score_turns(setting: Setting, episodes: Sequence[Episode]) -> list[tuple[float, str]]:
    """The scores that are due after a turn of these conversations, of one setting.

    Each moment's are asked for once for all. A reward that is asked after each token is asked once a turn.

    Returns:
        The reward of each one's step, 0.0 if it could not be scored, and its status.
    """
    scores: dict[int, list[Score]] = {}
    for when in setting.whens:
        rows = [row for row, episode in enumerate(episodes) if when != "episode" or episode.stop_reason is not None]
        ask(setting.reward, when, rows, episodes, scores)
    return [add_scores(episode, scores.get(row, ())) for row, episode in enumerate(episodes)]


def ask(
    reward: Reward, when: When, rows: Sequence[int], episodes: Sequence[Episode | None], into: dict[int, list[Score]]
) -> None:
    """Asks the reward once about the episodes of these rows, and adds their scores by row."""
    due = [episode for row in rows if (episode := episodes[row]) is not None]
    for row, score in zip(rows, reward.score_at(when, due) if due else (), strict=True):
        into.setdefault(row, []).append(score)


def add_scores(episode: Episode, scores: Iterable[Score]) -> tuple[float, str]:
    """Adds the scores of one step to its episode. The step's reward, 0.0 if a score failed, and its status."""
    scores = list(scores)
    for score in scores:
        for name, value in score.parts.items():
            episode.reward_parts[name] = episode.reward_parts.get(name, 0.0) + float(value)
    failed = next((score for score in scores if score.value is None), None)
    if failed is not None:
        if episode.score_status == "ok":
            episode.score_status = failed.status
        return 0.0, failed.status
    reward = math.fsum(score.value for score in scores if score.value is not None)
    episode.reward += reward
    return reward, "ok"


def outcome(setting: Setting, episode: Episode, status: str) -> dict[str, Any]:
    """The ``info`` of a step that ended a turn; ``status`` is the step's own.

    At the episode's end ``score_status`` is the episode's, and ``metrics`` are empty where it could not be scored.
    """
    info: dict[str, Any] = {
        "response": episode.response,
        "reward_parts": dict(episode.reward_parts),
        "score_status": status,
    }
    if episode.stop_reason is not None:
        scored = episode.score_status == "ok"
        metrics = setting.task.metrics([episode]) if scored else {}
        info["score_status"] = episode.score_status
        info["episode_record"] = episode.record()
        info["metrics"] = {name: float(value) for name, value in metrics.items()}
    return info


def transcript(episode: Episode) -> str:
    """Prompt and turns for people to read."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in episode.messages)
