"""What a benchmark's episodes come to: estimates, differences, normalised scores, a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from textgym.agent import total_usage
from textgym.comparison import clustered_mean, normalised, paired_difference
from textgym.evaluation import Estimate
from textgym.plotting import headline
from textgym.texts import excerpt

__all__ = [
    "RANDOM",
    "REFERENCE",
    "Row",
    "Summary",
    "difference",
    "markdown",
    "short_name",
    "short_names",
    "summarise_rows",
]

RANDOM, REFERENCE = "random", "reference"
"""The agents whose rewards are 0 and 1 on the normalised scale."""
Row = dict[str, Any]
"""An episode, as ``episodes.jsonl`` holds it."""
Summary = dict[str, Any]
"""What ``summary.json`` holds."""
SHOWN = 5  # reasons of failures, of an agent on a task


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
    over = _comparable(figures)
    normalised_means = {agent: fmean(_score(figures, agent, task) for task in over) for agent in figures if over}
    summary: Summary = {
        "main_metrics": main,
        "agents": figures,
        "normalised": normalised_means,
        "normalised_over": over,
    }
    if len(agents) == 2:
        summary["differences"] = {task: difference(of[agents[0], task], of[agents[1], task]) for task in preferred}
    return summary


def _main_metric(rows: Sequence[Row], preferred: Sequence[str]) -> str | None:
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    return next(iter(headline(names, preferred)), None)


def _figures(rows: Sequence[Row], metric: str | None) -> dict[str, Any]:
    """Of one agent on one task: estimates, and how many episodes failed for which reasons."""
    scored = [row for row in rows if row["status"] == "ok"]
    reasons = Counter(excerpt(row["status"]) for row in rows if row["status"] != "ok").most_common()
    found: dict[str, Any] = {
        "episodes": len(rows),
        "failed": len(rows) - len(scored),
        "reasons": dict(reasons[:SHOWN]),
        "other_reasons": sum(count for _, count in reasons[SHOWN:]),
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


def _comparable(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks of the normalised mean: all agents have a reward, and the reference a higher one than random."""
    if RANDOM not in figures or REFERENCE not in figures:
        return []
    return [task for task in figures[RANDOM] if all(math.isfinite(_score(figures, agent, task)) for agent in figures)]


def _score(figures: Mapping[str, Mapping[str, Any]], agent: str, task: str) -> float:
    """An agent's reward, random's being 0 and the reference's 1."""
    values = (figures[name][task].get("reward", {}).get("value", math.nan) for name in (agent, RANDOM, REFERENCE))
    return normalised(*values)


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
    figures, main, names = summary["agents"], summary["main_metrics"], short_names(summary["main_metrics"])
    parts = [_table("reward", names, figures, "reward") + _normalised_row(summary, names)]
    titles = {task: f"{names[task]}: {metric}" for task, metric in main.items() if metric is not None}
    if titles:
        parts.append(_table("main metric", titles, figures, "metric"))
    lines = [
        f"{names[task]}: {' less '.join(figures)} {_cell(estimate)}, p = {estimate['p']:.4f}"
        for task, estimate in summary.get("differences", {}).items()
        if estimate is not None
    ]
    for agent, by_task in figures.items():
        for task, found in by_task.items():
            reasons = [(count, f": {_code(reason)}") for reason, count in found["reasons"].items()]
            others = [(found["other_reasons"], " for other reasons")] if found["other_reasons"] else []
            lines += [
                f"{agent}, {names[task]}: {count} of {found['episodes']} episodes failed{why}"
                for count, why in [*reasons, *others]
            ]
    return "\n".join([*parts, *(f"- {line}\n" for line in lines)])


def _table(title: str, tasks: Mapping[str, str], figures: Mapping[str, Mapping[str, Any]], which: str) -> str:
    rows = [[name, *(_cell(by_task[task].get(which)) for by_task in figures.values())] for task, name in tasks.items()]
    return "".join(map(_line, [[title, *figures], ["---"] * (1 + len(figures)), *rows]))


def _normalised_row(summary: Summary, names: Mapping[str, str]) -> str:
    """Empty where there is no normalised mean; it says of which tasks where that is not all of them."""
    over = summary["normalised_over"]
    if not over:
        return ""
    some = "" if len(over) == len(names) else f" over {len(over)} of {len(names)} tasks: "
    title = f"**normalised mean**{some}{', '.join(names[task] for task in over) if some else ''}"
    return _line([title, *(f"{mean:.2f}" for mean in summary["normalised"].values())])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |\n"


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """The tasks' short names; the whole id where several have the same."""
    tasks = list(tasks)
    count = Counter(map(short_name, tasks))
    return {task: short_name(task) if count[short_name(task)] == 1 else task for task in tasks}


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
