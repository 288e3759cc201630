"""A benchmark's episodes as rows of ``episodes.jsonl``: written as they end, read with what a disk may do to them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from textgym.agent import Conversation
from textgym.benchmark_report import Row
from textgym.episode import Episode
from textgym.errors import ConfigurationError
from textgym.run_folder import EPISODES, RunFolder
from textgym.task import Task
from textgym.texts import plain, whole

__all__ = ["EPISODES", "Key", "append_rows", "key_of", "read_rows", "row_of"]

Key = tuple[str, str, int, int]
"""Agent, task, seed, and index of the sample."""

NUMBER = (int, float)
TYPES: dict[str, Any] = {
    "agent": str,
    "task": str,
    "seed": int,
    "index": int,
    "turns": list,
    "stop_reason": (str, type(None)),
    "status": str,
    "reward": (*NUMBER, type(None)),
    "metrics": dict,
    "usage": dict,
}


def key_of(row: Row) -> Key:
    """Which episode it is."""
    return row["agent"], row["task"], row["seed"], row["index"]


def row_of(conversation: Conversation) -> Row:
    """A finished conversation, all but agent and task; it fails where the task's metrics of it do."""
    episode = conversation.episode
    metrics = _metrics(conversation.setting.task, episode)
    return plain(
        {
            "seed": conversation.seed,
            "index": conversation.index,
            "id": episode.sample.id,
            "turns": [{"role": turn.role, "text": turn.text} for turn in episode.turns],
            "stop_reason": episode.stop_reason,
            "status": episode.score_status,
            "reward": episode.reward if episode.score_status == "ok" else None,
            "reward_parts": _finite(episode.reward_parts),
            "metrics": metrics,
            "usage": conversation.usage,
        }
    )


def _metrics(task: Task, episode: Episode) -> dict[str, float]:
    if episode.score_status != "ok":
        return {}
    try:
        return _finite(task.metrics([episode]))
    except Exception as error:  # noqa: BLE001 (one episode's failure is not its neighbours')
        episode.score_status = whole(f"metrics: {type(error).__name__}: {error}")
        return {}


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def append_rows(folder: RunFolder, rows: Iterable[Row]) -> None:
    """Writes each one as it comes."""
    with (folder / EPISODES).open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def read_rows(folder: RunFolder) -> list[Row]:
    """Each episode once, in order of their keys; a last line that was cut off is dropped from the file.

    Raises:
        ConfigurationError: A line is damaged.
    """
    _mend(folder)
    rows: dict[Key, Row] = {}
    for number, row in enumerate(folder.read_lines(EPISODES), 1):
        fault = _fault(row)
        if fault is not None:
            raise ConfigurationError(
                f"{folder / EPISODES}, line {number}: {fault}. Remove the line; the same call plays the episode again."
            )
        rows.setdefault(key_of(row), row)
    return [rows[key] for key in sorted(rows)]


def _mend(folder: RunFolder) -> None:
    path = folder / EPISODES
    content = path.read_bytes() if path.is_file() else b""
    whole_lines = content[: content.rfind(b"\n") + 1]
    if len(whole_lines) < len(content):
        folder.replace(EPISODES, lambda part: part.write_bytes(whole_lines))


def _fault(row: Row) -> str | None:
    """What is wrong with a row, None if nothing is."""
    wrong = [name for name, kind in TYPES.items() if name not in row or not isinstance(row[name], kind)]
    if wrong:
        return f"{wrong[0]!r} is {row[wrong[0]]!r:.100}" if wrong[0] in row else f"there is no {wrong[0]!r}"
    if not all(
        isinstance(turn, dict) and isinstance(turn.get("text"), str) and "role" in turn for turn in row["turns"]
    ):
        return "a turn has no role and text"
    if not all(isinstance(value, NUMBER) for value in (*row["metrics"].values(), *row["usage"].values())):
        return "one of 'metrics' and 'usage' is no number"
    if (row["status"] == "ok") != (row["reward"] is not None):
        return f"'reward' is {row['reward']!r} where 'status' is {row['status']!r:.100}"
    return None
