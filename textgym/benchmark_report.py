"""What a benchmark's episodes come to: estimates, differences, normalised scores, a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from textgym.agent import total_usage
from textgym.comparison import clustered_mean, normalised, paired_difference
from textgym.evaluation import Estimate
from textgym.plotting import headline

__all__ = ["RANDOM", "REFERENCE", "Row", "Summary", "difference", "markdown", "short_name", "summarise_rows"]

RANDOM, REFERENCE = "random", "reference"
"""The agents whose rewards are 0 and 1 on the normalised scale."""
Row = dict[str, Any]
"""An episode, as ``episodes.jsonl`` holds it."""
Summary = dict[str, Any]
"""What ``summary.json`` holds."""


def summarise_rows(rows: Sequence[Row], agents: Sequence[str], preferred: Mapping[str, Sequence[str]]) -> Summary:
    """The figures of every agent on every task; with two agents their paired differences too.

    Args:
        rows: The episodes.
        agents: Whose.
        preferred: The tasks, and the metrics that each would show first.
    """
    of: dict[tuple[str, str], list[Row]] = {(agent, task): [] for agent in agents for task in preferred}
    for row in rows:
        if (row["agent"], row["task"]) in of:
            of[row["agent"], row["task"]].append(row)
    main = {
        task: _main_metric([row for a in agents for row in of[a, task]], names) for task, names in preferred.items()
    }
    figures = {agent: {task: _figures(of[agent, task], main[task]) for task in preferred} for agent in agents}
    summary: Summary = {"main_metrics": main, "agents": figures, "normalised": _normalised(figures)}
    if len(agents) == 2:
        summary["differences"] = {task: difference(of[agents[0], task], of[agents[1], task]) for task in preferred}
    return summary


def _main_metric(rows: Sequence[Row], preferred: Sequence[str]) -> str | None:
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    return next(iter(headline(names, preferred)), None)


def _figures(rows: Sequence[Row], metric: str | None) -> dict[str, Any]:
    """Of one agent on one task: estimates, and how many episodes failed for which reasons."""
    scored = [row for row in rows if row["status"] == "ok"]
    found: dict[str, Any] = {
        "episodes": len(rows),
        "failed": len(rows) - len(scored),
        "reasons": dict(Counter(row["status"] for row in rows if row["status"] != "ok").most_common()),
        "usage": total_usage(row["usage"] for row in rows),
    }
    measured = [row for row in scored if metric in row["metrics"]]
    if scored:
        found["reward"] = _estimate(scored, lambda row: row["reward"])
    if measured:
        found["metric"] = _estimate(measured, lambda row: row["metrics"][metric])
    return found


def _estimate(rows: Sequence[Row], value: Callable[[Row], float]) -> Estimate:
    return clustered_mean([value(row) for row in rows], [row["index"] for row in rows])


def _normalised(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Each agent's mean over tasks of its reward, random's being 0 and the reference's 1; empty without these two.

    A task counts where all agents have a reward, and the reference another one than random.
    """
    if RANDOM not in figures or REFERENCE not in figures:
        return {}

    def score(agent: str, task: str) -> float:
        values = (figures[name][task].get("reward", {}).get("value", math.nan) for name in (agent, RANDOM, REFERENCE))
        return normalised(*values)

    tasks = [task for task in figures[RANDOM] if all(math.isfinite(score(agent, task)) for agent in figures)]
    return {agent: fmean(score(agent, task) for task in tasks) for agent in figures} if tasks else {}


def difference(first: Sequence[Row], second: Sequence[Row]) -> Estimate | None:
    """By how much the first agent's rewards are higher, over the episodes that both have a score for; None if none."""
    others = {(row["seed"], row["index"]): row["reward"] for row in second if row["status"] == "ok"}
    both = [row for row in first if row["status"] == "ok" and (row["seed"], row["index"]) in others]
    if not both:
        return None
    rewards = [row["reward"] for row in both], [others[row["seed"], row["index"]] for row in both]
    return paired_difference(*rewards, [row["index"] for row in both])


def markdown(summary: Summary) -> str:
    """Rewards and main metrics, tasks by agents, with 95% intervals; what failed and why."""
    figures, main = summary["agents"], summary["main_metrics"]
    parts = [_table("reward", {task: short_name(task) for task in main}, figures, "reward", summary["normalised"])]
    titles = {task: f"{short_name(task)}: {metric}" for task, metric in main.items() if metric is not None}
    if titles:
        parts.append(_table("main metric", titles, figures, "metric"))
    lines = [
        f"{short_name(task)}: {' less '.join(figures)} {_cell(estimate)}, p = {estimate['p']:.4f}"
        for task, estimate in summary.get("differences", {}).items()
        if estimate is not None
    ]
    lines += [
        f"{agent}, {short_name(task)}: {count} of {of_task['episodes']} episodes failed: {_code(reason)}"
        for agent, by_task in figures.items()
        for task, of_task in by_task.items()
        for reason, count in of_task["reasons"].items()
    ]
    return "\n".join([*parts, *(f"- {line}\n" for line in lines)])


def _table(
    title: str,
    tasks: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Any]],
    which: str,
    last: Mapping[str, float] | None = None,
) -> str:
    rows = [[name, *(_cell(by_task[task].get(which)) for by_task in figures.values())] for task, name in tasks.items()]
    if last:
        rows.append(["**normalised mean**", *(f"{last[agent]:.2f}" for agent in figures)])
    lines = [[title, *figures], ["---"] * (1 + len(figures)), *rows]
    return "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)


def short_name(task: str) -> str:
    """``Math`` of ``textgym/Math-v0``."""
    return task.rpartition("/")[2].rpartition("-")[0] or task


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Somebody else's words, so that Markdown does not read them."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate['value']:.3f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
