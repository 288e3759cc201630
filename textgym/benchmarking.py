"""Agents compared across tasks: the same samples with the same seeds, an episode a line, resumable."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, product
from pathlib import Path
from statistics import fmean
from typing import Any

import gymnasium

from textgym.agent import Agent, Conversation, Reply, check_agent, replies_to, take_turns
from textgym.benchmark_plots import plot_benchmark
from textgym.benchmark_report import RANDOM, REFERENCE, Row, Summary, difference, markdown, summarise_rows
from textgym.benchmark_rows import EPISODES, Key, append_rows, key_of, read_rows, row_of
from textgym.errors import ConfigurationError, TextGymError
from textgym.evaluation import Estimate, evenly_spaced
from textgym.hashing import hashed_id
from textgym.monitor import Monitor
from textgym.registration import make, registered_ids
from textgym.rewards.core import RewardLike
from textgym.run_folder import CONFIG, VALIDATION, RunFolder, versions
from textgym.setting import Setting
from textgym.text_env import TextEnv
from textgym.texts import described, plain

__all__ = ["RANDOM", "REFERENCE", "Benchmark", "Summary", "benchmark", "compare", "rescore"]

SUMMARY, TABLE = "summary.json", "table.md"
BATCH = 64
NOT_HERE = ("level", "split", "tokenizer", "max_context", "format", "render_mode", "max_episode_steps")
"""Arguments of environments that mean nothing where the turn level is played, or are the benchmark's own."""


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
        _check_count("episodes", self.episodes)
        _check_count("seeds", self.seeds)
        if not isinstance(self.split, str):
            raise ConfigurationError(f"split={self.split!r}; it is the name of a split, such as 'test'.")
        if not self.tasks:
            raise ConfigurationError("a benchmark needs at least one task.")
        settings = {id: _setting(id, self.split, options) for id, options in _by_id(self.tasks).items()}
        object.__setattr__(self, "settings", settings)

    def places(self, task: str) -> list[tuple[int, int]]:
        """The seeds and sample indices of a task's episodes."""
        indices = evenly_spaced(len(self.settings[task].samples), self.episodes)
        return list(product(range(self.seeds), indices))

    def keys(self, agents: Iterable[str]) -> set[Key]:
        """All episodes of these agents."""
        return {(agent, task, *place) for agent in agents for task in self.tasks for place in self.places(task)}

    def description(self) -> dict[str, Any]:
        """What makes two benchmarks the same: JSON-ready, the tasks with their rewards and a hash of their samples."""
        tasks = {
            id: {
                "options": plain(options),
                "reward": described(self.settings[id].reward),
                "samples": self._hash(id),
            }
            for id, options in self.tasks.items()
        }
        return {"tasks": tasks, "episodes": self.episodes, "seeds": self.seeds, "split": self.split}

    def _hash(self, task: str) -> str:
        samples = self.settings[task].samples
        used = [vars(samples[i]) for i in sorted({index for _, index in self.places(task)})]
        return hashed_id(json.dumps(plain(used), sort_keys=True))


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r}; it is a whole number, at least 1.")


def _by_id(tasks: object) -> dict[str, Mapping[str, Any]]:
    """The tasks' options by id."""
    if isinstance(tasks, Mapping):
        by_id = list(tasks.items())
    else:
        by_id = [(id, {}) for id in tasks] if isinstance(tasks, (list, tuple)) else [(tasks, None)]
    if not all(isinstance(id, str) and isinstance(options, Mapping) for id, options in by_id):
        raise ConfigurationError(f"tasks are a list of ids, or a table of their options by id, not {tasks!r:.200}.")
    return dict(by_id)


def _setting(id: str, split: str, options: Mapping[str, Any]) -> Setting:
    unused = [name for name in NOT_HERE if name in options]
    if unused:
        raise ConfigurationError(
            f"{id}: {', '.join(unused)} cannot be set for a task of a benchmark, which plays its one split by turns: "
            "agents have their own tokenizers and contexts."
        )
    if id in gymnasium.registry and id not in registered_ids():
        raise ConfigurationError(f"{id!r} is no environment of textgym's; see `textgym list`.")
    env = make(id, level="turn", split=split, **options).unwrapped
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
    batch: int = BATCH,
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
        batch: Conversations that go on side by side; an agent is shown as many at a time, or ``at_a_time`` where it
            has such a number (an :class:`~textgym.agents.OpenAIAgent` its ``concurrency``). Their rows are written when
            all of them have replied: so many replies are lost in a kill.
        monitor: Is told how it goes.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigurationError: An argument cannot work, the folder holds another benchmark or damaged rows, or another
            process is at work in it.
    """
    _check_count("batch", batch)
    plan = Benchmark(_by_id(tasks), episodes, seeds, split)
    if not isinstance(agents, Mapping) or not agents:
        raise ConfigurationError(f"a benchmark needs at least one agent: a table of them by name, not {agents!r:.200}.")
    by_task = {name: _by_task(name, agent, plan) for name, agent in agents.items()}
    folder = _open(Path(out), plan, agents)
    with folder.alone():
        _play_missing(folder, plan, by_task, batch, monitor or Monitor())
        return _finish(folder, plan, list(agents), _training_runs(by_task))


def _play_missing(
    folder: RunFolder, plan: Benchmark, agents: Mapping[str, Mapping[str, Agent]], batch: int, monitor: Monitor
) -> None:
    done = {key_of(row) for row in read_rows(folder)}
    for (name, by_task), task in product(agents.items(), plan.tasks):
        if task not in by_task:
            continue
        agent, places = by_task[task], plan.places(task)
        missing = [place for place in places if (name, task, *place) not in done]
        monitor.stage(f"{name}, {task}", f"{len(missing)} of {len(places)} episodes to play")
        played = _play(plan.settings[task], _asking(agent), missing, min(batch, getattr(agent, "at_a_time", batch)))
        append_rows(folder, _counted(({"agent": name, "task": task, **row} for row in played), monitor, len(missing)))


def _by_task(name: str, agent: Agent | Mapping[str, Agent], plan: Benchmark) -> Mapping[str, Agent]:
    """The agent for each task that it plays."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigurationError(f"an agent's name is a text that can be shown, not {name!r}.")
    by_task = agent if isinstance(agent, Mapping) else dict.fromkeys(plan.tasks, agent)
    if not plan.tasks.keys() & by_task.keys():
        raise ConfigurationError(f"the agent {name!r} is for {', '.join(by_task) or 'no task'}, and none is played.")
    for of_task in by_task.values():
        check_agent(of_task)
    return by_task


def _open(path: Path, plan: Benchmark, agents: Mapping[str, Agent | Mapping[str, Agent]]) -> RunFolder:
    """The folder of this benchmark, with its configuration, whether it is new or not."""
    folder = RunFolder(path)
    given = json.loads(json.dumps({**plan.description(), "agents": plain(agents)}))
    if not (folder / CONFIG).is_file():
        RunFolder.check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder.write_json(CONFIG, {**given, "versions": versions(), "git_commit": _git_commit()})
        return folder
    config = _existing(path).config
    different = [name for name, value in given.items() if config.get(name) != value]
    if different:
        what = "; ".join(line for name in different for line in _differences(name, config.get(name), given[name]))
        raise ConfigurationError(
            f"{path} holds a benchmark with other {', '.join(different)}: {what}. Name another folder."
        )
    return folder


Answer = Callable[[Sequence[Conversation]], Sequence[Reply]]


def _asking(agent: Agent) -> Answer:
    return lambda live: replies_to(agent, [conversation.observation() for conversation in live])


def _play(setting: Setting, answer: Answer, places: Iterable[tuple[int, int]], batch: int) -> Iterator[Row]:
    """Rows of the episodes, as they end."""
    waiting = iter(places)
    live: list[Conversation] = []
    while True:
        live += [Conversation(setting, *place) for place in islice(waiting, batch - len(live))]
        if not live:
            return
        take_turns(live, answer(live))
        yield from (row_of(conversation) for conversation in live if conversation.is_over)
        live = [conversation for conversation in live if not conversation.is_over]


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
    planned = plan.keys(agents)
    rows = [row for row in read_rows(folder) if key_of(row) in planned]
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
        ConfigurationError: There is no benchmark, or its data are others now or cannot be had.
    """
    folder = _existing(path)
    config = folder.config
    plan = _plan_again(folder, reward)
    hashes = {id: task["samples"] for id, task in plan.description()["tasks"].items()}
    changed = [id for id, task in config["tasks"].items() if task["samples"] != hashes[id]]
    if changed:
        raise ConfigurationError(f"the samples of {', '.join(changed)} are not those that the benchmark was played on.")
    planned = plan.keys(config["agents"])
    rows = [row for row in read_rows(folder) if key_of(row) in planned]
    target = RunFolder(folder / "rescored" / name)
    target.write_json(CONFIG, {**config, "reward": name, "rescored_from": str(folder.path)})
    monitor = monitor or Monitor()
    monitor.stage("rescore", f"{len(rows)} episodes")
    target.write_lines(EPISODES, list(_counted(_rescored(plan, rows), monitor, len(rows))))
    return _finish(target, plan, list(config["agents"]))


def _plan_again(folder: RunFolder, reward: RewardLike) -> Benchmark:
    """The folder's benchmark with another reward."""
    config = folder.config
    tasks = {id: {**task["options"], "reward": reward} for id, task in config["tasks"].items()}
    try:
        return Benchmark(tasks, config.get("episodes", 0), config.get("seeds", 0), config.get("split", ""))
    except (TextGymError, TypeError) as error:
        raise ConfigurationError(
            f"the benchmark in {folder.path} cannot be set up again: {error} (Its {CONFIG} holds what was given in "
            "Python, such as a list of samples, only as a text; give data as a file to score replies anew.)"
        ) from error


def _rescored(plan: Benchmark, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with the scores that their replies have now; those in order of their keys."""
    for (agent, task), group in groupby(rows, lambda row: (row["agent"], row["task"])):
        stored = {(row["seed"], row["index"]): row for row in group}
        yield from (row for row in stored.values() if row["stop_reason"] is None)  # the agent or the task failed
        played = [place for place, row in stored.items() if row["stop_reason"] is not None]
        for row in _play(plan.settings[task], _repeating(stored), played, BATCH):
            was = stored[row["seed"], row["index"]]
            if row["turns"] != was["turns"]:
                other_way = "the conversation went another way than the stored one"
                row = {**row, "status": other_way, "reward": None, "metrics": {}}
            yield {"agent": agent, "task": task, **row, "usage": was["usage"]}


def _repeating(stored: Mapping[tuple[int, int], Row]) -> Answer:
    """Says what was said, and is at a loss after that."""

    def reply(conversation: Conversation) -> Reply:
        row = stored[conversation.seed, conversation.index]
        replies = [turn["text"] for turn in row["turns"] if turn["role"] == "assistant"]
        number = len(conversation.episode.responses)
        if number >= len(replies):
            return Reply(failure="the stored conversation ends before this turn")
        is_last = number == len(replies) - 1 and row["stop_reason"] != "task"
        return Reply(replies[number], row["stop_reason"] if is_last else "eos")

    return lambda live: [reply(conversation) for conversation in live]


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
    rows = [read_rows(folder) for folder in (one, other)]
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
    config = folder.config
    if "tasks" not in config:
        raise ConfigurationError(f"{path} holds no benchmark: there is no {CONFIG} of one in it.")
    tasks, agents = config["tasks"], config.get("agents")
    if not isinstance(tasks, dict) or not isinstance(agents, dict) or not all(map(_is_task, tasks.values())):
        raise ConfigurationError(f"{folder / CONFIG} is damaged: it is not as a benchmark writes it.")
    return folder


def _is_task(described: object) -> bool:
    return isinstance(described, dict) and isinstance(described.get("options"), dict) and "samples" in described


def _differences(place: str, was: object, now: object) -> list[str]:
    """Where two descriptions differ, and what was and is there."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return [line for name in names for line in _differences(f"{place}: {name}", was.get(name), now.get(name))]
    return [f"{place} was {was!r:.300}, and is {now!r:.300}"]


def _git_commit() -> str | None:
    """Of the folder that the benchmark is run in; None outside of a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
