"""Agents compared across tasks: the same samples with the same seeds, an episode a line, resumable."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from statistics import fmean
from typing import Any

from textgym.agent import Agent, Conversation, Observation, Reply, go_on
from textgym.benchmark_plots import plot_benchmark
from textgym.benchmark_report import RANDOM, REFERENCE, Row, Summary, difference, markdown, summarise_rows
from textgym.episode import Turn
from textgym.errors import ConfigurationError
from textgym.evaluation import Estimate, evenly_spaced
from textgym.hashing import hashed_id
from textgym.monitor import Monitor
from textgym.registration import make
from textgym.rewards.core import RewardLike
from textgym.run_folder import CONFIG, VALIDATION, RunFolder, versions
from textgym.setting import Setting
from textgym.text_env import TextEnv

__all__ = ["RANDOM", "REFERENCE", "Benchmark", "Summary", "benchmark", "compare", "rescore"]

EPISODES, SUMMARY, TABLE = "episodes.jsonl", "summary.json", "table.md"


@dataclass(frozen=True)
class Benchmark:
    """What is played: every agent meets the same samples with the same seeds.

    Args:
        tasks: Ids of environments, or arguments of :func:`textgym.make` by id: ``{"textgym/Math-v0": {"data": ...}}``.
        episodes: How many samples of each task, evenly spaced in its split; all of them where there are fewer.
        seeds: How often each sample is played; the first seed is 0.
        split: Which of the tasks' data.

    Raises:
        ConfigurationError: A number is less than 1, or there are no tasks.
        UnknownEnvironmentError: There is no such task.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    episodes: int = 200
    seeds: int = 3
    split: str = "test"
    settings: dict[str, Setting] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.seeds < 1:
            raise ConfigurationError(f"episodes={self.episodes}, seeds={self.seeds}; both are at least 1.")
        if not self.tasks:
            raise ConfigurationError("a benchmark needs at least one task.")
        settings = {id: _setting(id, split=self.split, **options) for id, options in self.tasks.items()}
        object.__setattr__(self, "settings", settings)

    def places(self, task: str) -> list[tuple[int, int]]:
        """The seeds and sample indices of a task's episodes."""
        indices = evenly_spaced(len(self.settings[task].samples), self.episodes)
        return list(product(range(self.seeds), indices))

    def description(self) -> dict[str, Any]:
        """What makes two benchmarks the same: JSON-ready, the tasks with a hash of their samples."""
        tasks = {id: {"options": _plain(options), "samples": self._hash(id)} for id, options in self.tasks.items()}
        return {"tasks": tasks, "episodes": self.episodes, "seeds": self.seeds, "split": self.split}

    def _hash(self, task: str) -> str:
        samples = self.settings[task].samples
        used = sorted({index for _, index in self.places(task)})
        return hashed_id(json.dumps([asdict(samples[i]) for i in used], sort_keys=True, default=repr))


def _setting(id: str, **options: Any) -> Setting:
    env = make(id, level="turn", **options).unwrapped
    if not isinstance(env, TextEnv):
        raise ConfigurationError(f"{id!r} is no environment of textgym's; see `textgym list`.")
    return env.setting


def benchmark(
    agents: Mapping[str, Agent | Mapping[str, Agent]],
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    episodes: int = 200,
    seeds: int = 3,
    split: str = "test",
    batch: int = 64,
    monitor: Monitor | None = None,
) -> Summary:
    """Plays every agent on every task, and writes what came of it into a folder.

    The same call again goes on where the last one stopped, however it stopped; what is there is not played again.
    ``episodes.jsonl`` gets a row for each episode as it ends, ``summary.json`` and ``table.md`` the figures; the
    pictures are those of :func:`textgym.benchmark_plots.plot_benchmark`.

    Args:
        agents: By name. An agent is anything with ``act(observations) -> replies``, see :mod:`textgym.agent`; or it is
            one by task, ``{"textgym/Math-v0": ...}``, and then only plays those. Those named ``"random"`` and
            ``"reference"`` are 0 and 1 on the normalised scale.
        tasks: Ids of environments, or their arguments by id.
        out: The folder.
        episodes, seeds, split: As in :class:`Benchmark`.
        batch: Conversations that go on side by side; an agent is shown as many at a time.
        monitor: Is told how it goes.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigurationError: An argument cannot work, or the folder holds another benchmark.
    """
    plan = Benchmark(tasks if isinstance(tasks, Mapping) else {id: {} for id in tasks}, episodes, seeds, split)
    if not agents:
        raise ConfigurationError("a benchmark needs at least one agent.")
    by_task = {name: _by_task(name, agent, plan) for name, agent in agents.items()}
    monitor = monitor or Monitor()
    folder = _open(Path(out), plan, agents)
    done = {_key(row) for row in _mended_rows(folder)}
    for name, task in product(agents, plan.tasks):
        if task not in by_task[name]:
            continue
        places = plan.places(task)
        missing = [place for place in places if (name, task, *place) not in done]
        monitor.stage(f"{name}, {task}", f"{len(missing)} of {len(places)} episodes to play")
        played = _play(plan.settings[task], by_task[name][task], missing, batch)
        _append(folder, _counted(({"agent": name, "task": task, **row} for row in played), monitor, len(missing)))
    return _finish(folder, plan, list(agents), _training_runs(by_task))


def _by_task(name: str, agent: Agent | Mapping[str, Agent], plan: Benchmark) -> Mapping[str, Agent]:
    """The agent for each task that it plays."""
    if not isinstance(agent, Mapping):
        return dict.fromkeys(plan.tasks, agent)
    if not plan.tasks.keys() & agent.keys():
        raise ConfigurationError(f"the agent {name!r} is for {', '.join(agent) or 'no task'}, and none is played.")
    return agent


def _open(path: Path, plan: Benchmark, agents: Mapping[str, Agent | Mapping[str, Agent]]) -> RunFolder:
    """The folder of this benchmark, with its configuration, whether it is new or not."""
    folder = RunFolder(path)
    described = {**plan.description(), "agents": {name: _description(agent) for name, agent in agents.items()}}
    if not (folder / CONFIG).is_file():
        RunFolder.check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder.write_json(CONFIG, {**described, "versions": versions(), "git_commit": _git_commit()})
        return folder
    given = json.loads(json.dumps(described))
    different = [name for name, value in given.items() if folder.config.get(name) != value]
    if different:
        was = {name: folder.config.get(name) for name in different}
        raise ConfigurationError(
            f"{path} holds a benchmark with other {', '.join(different)}: {_short(was)}, not "
            f"{_short({name: given[name] for name in different})}. Name another folder."
        )
    return folder


def _description(agent: Agent | Mapping[str, Agent]) -> str | dict[str, Any]:
    """How an agent describes itself; what has no ``repr`` of its own by its class."""
    if isinstance(agent, Mapping):
        return {task: _description(of_task) for task, of_task in agent.items()}
    own = type(agent).__repr__ is not object.__repr__
    return repr(agent) if own else f"{type(agent).__module__}.{type(agent).__qualname__}"


def _mended_rows(folder: RunFolder) -> list[Row]:
    """The rows that are there; a last one that was cut off is dropped from the file."""
    path = folder / EPISODES
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        folder.replace(EPISODES, lambda part: part.write_bytes(whole))
    return folder.read_lines(EPISODES)


def _key(row: Row) -> tuple[str, str, int, int]:
    return row["agent"], row["task"], row["seed"], row["index"]


def _play(setting: Setting, agent: Agent, places: Sequence[tuple[int, int]], batch: int) -> Iterator[Row]:
    """Rows of the episodes, as they end."""
    waiting = iter(places)
    live: list[Conversation] = []
    while True:
        live += [Conversation(setting, *place) for place in islice(waiting, batch - len(live))]
        if not live:
            return
        go_on(live, agent)
        yield from (_row(conversation) for conversation in live if conversation.is_over)
        live = [conversation for conversation in live if not conversation.is_over]


def _row(conversation: Conversation) -> Row:
    episode = conversation.episode
    scored = episode.score_status == "ok"
    metrics = conversation.setting.task.metrics([episode]) if scored else {}
    return {
        "seed": conversation.seed,
        "index": conversation.index,
        "id": episode.sample.id,
        "turns": [{"role": turn.role, "text": turn.text} for turn in episode.turns],
        "stop_reason": episode.stop_reason,
        "status": episode.score_status,
        "reward": episode.reward if scored else None,
        "reward_parts": episode.reward_parts,
        "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        "usage": conversation.usage,
    }


def _append(folder: RunFolder, rows: Iterable[Row]) -> None:
    with (folder / EPISODES).open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def _counted(rows: Iterable[Row], monitor: Monitor, total: int) -> Iterator[Row]:
    rewards: list[float] = []
    for done, row in enumerate(rows, 1):
        if row["reward"] is not None:
            rewards.append(row["reward"])
        monitor.progress(done, total, {"reward": fmean(rewards)} if rewards else {})
        yield row


def _finish(
    folder: RunFolder, plan: Benchmark, agents: Sequence[str], runs: Mapping[str, Mapping[str, Path]] | None = None
) -> Summary:
    rows = sorted(folder.read_lines(EPISODES), key=_key)
    preferred = {id: setting.task.headline_metrics for id, setting in plan.settings.items()}
    summary = summarise_rows(rows, agents, preferred)
    folder.write_json(SUMMARY, summary)
    folder.replace(TABLE, lambda path: path.write_text(markdown(summary), encoding="utf-8"))
    plot_benchmark(folder, summary, rows, runs or {})
    return summary


def _training_runs(agents: Mapping[str, Mapping[str, Agent]]) -> dict[str, dict[str, Path]]:
    """By agent and task the folder of the training run that the agent's model lies in, where it lies in one."""
    found: dict[str, dict[str, Path]] = {}
    for name, by_task in agents.items():
        for task, agent in by_task.items():
            folder = RunFolder(Path(str(getattr(agent, "name", ""))).parent)
            is_run = (folder / VALIDATION).is_file() and (folder / CONFIG).is_file()
            if is_run and folder.config.get("env") == task:
                found.setdefault(name, {})[task] = folder.path
    return found


# --------------------------------------------------------------- afterwards


def rescore(path: str | Path, reward: RewardLike, name: str, monitor: Monitor | None = None) -> Summary:
    """Scores the stored replies of a benchmark anew; nothing is generated.

    The conversations are played again with the replies that are stored, into the folder ``rescored/NAME``.

    Args:
        path: The benchmark's folder.
        reward: Who scores.
        name: Of the new folder.
        monitor: Is told how it goes.

    Raises:
        ConfigurationError: There is no benchmark, or its data are others now.
    """
    folder = _existing(path)
    config = folder.config
    options = {id: task["options"] for id, task in config["tasks"].items()}
    plan = Benchmark(
        {id: {**given, "reward": reward} for id, given in options.items()},
        config["episodes"],
        config["seeds"],
        config["split"],
    )
    hashes = {id: task["samples"] for id, task in plan.description()["tasks"].items()}
    changed = [id for id, task in config["tasks"].items() if task["samples"] != hashes[id]]
    if changed:
        raise ConfigurationError(f"the samples of {', '.join(changed)} are not those that the benchmark was played on.")
    rows = sorted(_mended_rows(folder), key=_key)
    target = RunFolder(folder / "rescored" / name)
    target.write_json(CONFIG, {**config, "reward": name, "rescored_from": str(folder.path)})
    monitor = monitor or Monitor()
    monitor.stage("rescore", f"{len(rows)} episodes")
    new = [{"agent": row["agent"], "task": row["task"], **_replayed(plan.settings[row["task"]], row)} for row in rows]
    target.write_lines(EPISODES, new)
    return _finish(target, plan, list(config["agents"]))


def _replayed(setting: Setting, row: Row) -> Row:
    """The row with the scores that its replies have now."""
    if row["stop_reason"] is None:  # the agent failed
        return {name: value for name, value in row.items() if name not in ("agent", "task")}
    conversation = Conversation(setting, row["seed"], row["index"])
    replies = [turn["text"] for turn in row["turns"] if turn["role"] == "assistant"]
    agent = _Recorded(replies, row["stop_reason"])
    while not conversation.is_over:
        go_on([conversation], agent)
    turns = [Turn(turn["role"], turn["text"]) for turn in row["turns"]]
    if conversation.episode.turns != turns:
        conversation.episode.score_status = "the conversation went another way than the stored one"
    return {**_row(conversation), "usage": row["usage"]}


class _Recorded:
    """Says what was said, and is at a loss after that."""

    def __init__(self, replies: Sequence[str], stop_reason: str) -> None:
        self.replies, self.stop_reason = replies, stop_reason

    def act(self, observations: Sequence[Observation]) -> list[Reply]:
        (observation,) = observations
        if observation.turn >= len(self.replies):
            return [Reply(failure="the stored conversation ends before this turn")]
        cut = observation.turn == len(self.replies) - 1 and self.stop_reason in ("length", "context")
        return [Reply(self.replies[observation.turn], self.stop_reason if cut else "eos")]  # type: ignore[arg-type]


def compare(first: str | Path, second: str | Path) -> dict[str, dict[str, Estimate]]:
    """By how much the agents of one benchmark earn more than those of the same name in another, task by task.

    Args:
        first: A benchmark's folder.
        second: Another one's, on the same samples.

    Raises:
        ConfigurationError: They have no agent and task in common, or other samples.
    """
    one, other = _existing(first), _existing(second)
    tasks = [task for task in one.config["tasks"] if task in other.config["tasks"]]
    for task in tasks:
        if one.config["tasks"][task]["samples"] != other.config["tasks"][task]["samples"]:
            raise ConfigurationError(f"{first} and {second} have other samples of {task}; they cannot be paired.")
    rows = [sorted(_mended_rows(folder), key=_key) for folder in (one, other)]
    found: dict[str, dict[str, Estimate]] = {}
    for agent, task in product(one.config["agents"], tasks):
        of_pair = [[row for row in side if (row["agent"], row["task"]) == (agent, task)] for side in rows]
        estimate = difference(*of_pair)
        if estimate is not None:
            found.setdefault(agent, {})[task] = estimate
    if not found:
        raise ConfigurationError(f"{first} and {second} have no scored episode of the same agent and task.")
    return found


def _existing(path: str | Path) -> RunFolder:
    folder = RunFolder(path)
    if "tasks" not in folder.read_json(CONFIG):
        raise ConfigurationError(f"{path} holds no benchmark: there is no {CONFIG} of one in it.")
    return folder


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(options), default=repr))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _git_commit() -> str | None:
    """Of the folder that the benchmark is run in; None outside of a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
