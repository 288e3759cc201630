"""The pictures of a benchmark, drawn from its figures and its episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from textgym.benchmark_report import Row, Summary, short_names
from textgym.comparison import clustered_mean
from textgym.plotting import COLOURS, MARKERS, TITLE
from textgym.run_folder import VALIDATION, RunFolder

__all__ = ["plot_benchmark"]

COLUMNS = 4  # panels side by side
LABEL = 40  # characters of an agent's name
Draw = Callable[[Axes, str], list[str]]  # the agents that it has drawn


def plot_benchmark(
    folder: RunFolder, summary: Summary, rows: Sequence[Row], runs: Mapping[str, Mapping[str, Path]]
) -> list[Path]:
    """Draws the pictures that there is something to draw for.

    ``rewards.png``: each agent's reward by task, with 95% intervals. ``lengths.png``: reward against the length of an
    episode's replies in words. ``coverage.png``: of tasks in which an agent may abstain, the share of right ones among
    the answers against the share that is answered. ``curves.png``: how the reward rose where agents were trained.

    Args:
        folder: Where they go.
        summary: The figures.
        rows: The episodes.
        runs: By agent and task the folder of the training run.

    Returns:
        The pictures' paths.
    """
    agents, tasks = list(summary["agents"]), list(summary["main_metrics"])
    styles = {agent: _style(number) for number, agent in enumerate(agents)}
    of: dict[tuple[str, str], list[Row]] = {(agent, task): [] for agent in agents for task in tasks}
    for row in rows:
        if row["status"] == "ok" and (row["agent"], row["task"]) in of:
            of[row["agent"], row["task"]].append(row)

    def rewards(axes: Axes, task: str) -> list[str]:
        return _draw_rewards(axes, {a: summary["agents"][a][task].get("reward") for a in agents}, styles)

    def lengths(axes: Axes, task: str) -> list[str]:
        points = {a: (_mean_length(of[a, task]), summary["agents"][a][task]["reward"]) for a in agents if of[a, task]}
        axes.set_xlabel("words an episode")
        return _draw_points(axes, points, styles, "reward")

    def coverage(axes: Axes, task: str) -> list[str]:
        points = {a: point for a in agents if (point := _coverage(of[a, task])) is not None}
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("share answered")
        return _draw_points(axes, points, styles, "right among the answers")

    def curves(axes: Axes, task: str) -> list[str]:
        return _draw_curves(axes, {a: runs[a][task] for a in agents if task in runs.get(a, {})}, styles)

    drawn = {"rewards": rewards, "lengths": lengths, "coverage": coverage, "curves": curves}
    paths = (_picture(folder, f"{name}.png", short_names(tasks), draw, styles) for name, draw in drawn.items())
    return [path for path in paths if path is not None]


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}


def _picture(
    folder: RunFolder, name: str, tasks: Mapping[str, str], draw: Draw, styles: Mapping[str, dict[str, Any]]
) -> Path | None:
    """A panel for each task that has something to show; None, and no picture, where none has."""
    drawn = {task: agents for task in tasks if (agents := draw(Figure().subplots(), task))}
    if not drawn:
        return None
    columns = min(COLUMNS, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = Figure((3.4 * columns + 0.4, 2.7 * lines + 0.7), layout=ConstrainedLayoutEngine(), facecolor="white")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, task in zip(panels, drawn, strict=False):
        draw(axes, task)
        axes.set_title(tasks[task], **TITLE)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    shown = [agent for agent in styles if any(agent in agents for agents in drawn.values())]
    _add_legend(figure, panels[0], {agent: styles[agent] for agent in shown}, 2 * columns)
    folder.replace(name, lambda path: figure.savefig(path, dpi=130))
    return folder / name


def _add_legend(figure: Figure, axes: Axes, styles: Mapping[str, dict[str, Any]], columns: int) -> None:
    handles = [axes.plot([], [], linestyle="", **style)[0] for style in styles.values()]
    stand_ins = list(map(str, range(len(styles))))  # a label that begins with "_" would be left out
    layout: dict[str, Any] = {"loc": "outside upper left", "ncols": columns, "frameon": False, "fontsize": 9}
    for text, agent in zip(figure.legend(handles, stand_ins, **layout).get_texts(), styles, strict=True):
        text.set_parse_math(False)  # a name with dollars is no formula
        text.set_text(agent if len(agent) <= LABEL else f"{agent[:LABEL]}…")


def _draw_rewards(axes: Axes, estimates: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> list[str]:
    for place, (agent, estimate) in enumerate(reversed(list(estimates.items()))):
        if estimate is not None:
            _errorbar(axes, estimate, styles[agent], (estimate["value"], place), horizontal=True)
    axes.set_yticks([])
    axes.set_ylim(-0.7, len(estimates) - 0.3)
    axes.set_xlabel("reward")
    return [agent for agent, estimate in estimates.items() if estimate is not None]


def _draw_points(
    axes: Axes, points: Mapping[str, tuple[float, Any]], styles: Mapping[str, dict[str, Any]], label: str
) -> list[str]:
    for agent, (x, estimate) in points.items():
        _errorbar(axes, estimate, styles[agent], (x, estimate["value"]))
    axes.set_ylabel(label)
    return list(points)


def _errorbar(
    axes: Axes, estimate: Mapping[str, float], style: dict[str, Any], at: tuple[float, float], horizontal: bool = False
) -> None:
    below, above = max(0.0, estimate["value"] - estimate["low"]), max(0.0, estimate["high"] - estimate["value"])
    which: dict[str, Any] = {"xerr" if horizontal else "yerr": [[below], [above]]}
    axes.errorbar(at[0], at[1], **which, linestyle="", markersize=6, elinewidth=1.2, capsize=2.5, **style)


def _draw_curves(axes: Axes, runs: Mapping[str, Path], styles: Mapping[str, dict[str, Any]]) -> list[str]:
    drawn = []
    for agent, path in runs.items():
        rows = [row for row in RunFolder(path).read_lines(VALIDATION) if "reward" in row["metrics"]]
        drawn += [agent] if rows else []
        values = [row["metrics"]["reward"]["value"] for row in rows]
        axes.plot([row["timesteps"] for row in rows], values, markersize=3, linewidth=1.5, **styles[agent])
    axes.set_xlabel("steps")
    axes.set_ylabel("validation reward")
    return drawn


def _mean_length(rows: Sequence[Row]) -> float:
    return fmean(sum(len(t["text"].split()) for t in row["turns"] if t["role"] == "assistant") for row in rows)


def _coverage(rows: Sequence[Row]) -> tuple[float, dict[str, float]] | None:
    """The share answered, and the share of right ones among the answers with its 95% interval; None without any."""
    if not rows or not all({"accuracy", "abstention_rate"} <= row["metrics"].keys() for row in rows):
        return None
    answered = [row for row in rows if not row["metrics"]["abstention_rate"]]
    if not answered:
        return None
    right = [row["metrics"]["accuracy"] for row in answered]
    return len(answered) / len(rows), clustered_mean(right, [row["index"] for row in answered])
