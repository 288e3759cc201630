"""The picture of a training run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from textgym.run_folder import PROGRESS, RESULTS, VALIDATION, RunFolder

__all__ = ["CURVES", "headline", "plot_curves"]

CURVES = "curves.png"
COLOURS = ("#3b6fb6", "#d1495b", "#2a9d74", "#e0a030", "#7a5195", "#5f6b7a")  # told apart by the colour-blind too
STAGE_COLOURS = {"base": "#b8c0cc", "sft": "#7f9fcf", "ppo": "#2f5d9e"}
STAGE_NAMES = {"base": "base model", "sft": "warm start", "ppo": "PPO"}
MARKERS = "osD^vP"
LEGEND_WIDTH = 78  # characters that fit above a panel, 6 of them for each line's sign
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}
MAX_HEADLINES = 4


def headline(names: Sequence[str], preferred: Sequence[str] = ()) -> list[str]:
    """The few metrics to show: the preferred ones that there are, else the first that are no split of another."""
    found = [name for name in preferred if name in names]
    plain = [name for name in names if "/" not in name and name not in ("reward", "unscored")]
    return (found or plain)[:MAX_HEADLINES]


def plot_curves(folder: str | Path, preferred: Sequence[str] = ()) -> Path:
    """Draws ``curves.png`` from the other files of a run's folder.

    Args:
        folder: The run's.
        preferred: The metrics to show.

    Returns:
        The picture's path.
    """
    run = RunFolder(folder)
    stages = run.read_json(RESULTS).get("stages", {})
    validation = run.read_lines(VALIDATION)
    progress = _progress(run / PROGRESS)
    names = headline(list(stages.get("ppo") or next(iter(stages.values()), {})), preferred)
    figure = Figure(figsize=(12, 8.4), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15), facecolor="white")
    (reward, metrics), (kl, bars) = figure.subplots(2, 2)
    _draw_reward(reward, validation, progress)
    _draw_metrics(metrics, validation, names)
    _draw_kl(kl, progress)
    _draw_bars(bars, stages, names)
    _add_legends((reward, metrics))
    _add_legends((kl, bars))
    figure.suptitle(_title(run), fontsize=13, fontweight="bold", x=0.01, ha="left")
    run.replace(CURVES, lambda path: figure.savefig(path, dpi=150))
    return run / CURVES


def _title(run: RunFolder) -> str:
    config = run.config
    model = Path(config["model"]).name if config.get("model") else "built-in model"
    return f"{config.get('env', 'training')}, {model}, seed {config.get('seed', 0)}"


def _progress(path: Path) -> dict[str, list[float]]:
    """The columns of ``progress.csv``; nan where a cell is empty."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _draw_reward(axes: Axes, validation: list[dict[str, Any]], progress: Mapping[str, list[float]]) -> None:
    _prepare(axes, "Reward of an episode", "steps of the agent (tokens)", "mean reward")
    steps, rewards = progress.get("time/total_timesteps", []), progress.get("rollout/ep_rew_mean", [])
    if steps and rewards:
        axes.plot(steps, rewards, color="#aab2bd", linewidth=1.2, label="training, sampled")
    _draw_line(axes, validation, "reward", COLOURS[0], "o", "validation, greedy")
    rows = [row for row in validation if "reward" in row["metrics"]]
    if rows:
        start = rows[0]["metrics"]["reward"]["value"]
        axes.axhline(start, color="#5f6b7a", linewidth=1, linestyle=(0, (4, 3)), label="before PPO")
        best = next((row for row in reversed(rows) if row["best"]), rows[0])
        value = best["metrics"]["reward"]["value"]
        axes.plot(
            best["timesteps"],
            value,
            "*",
            markersize=15,
            color=COLOURS[3],
            markeredgecolor="white",
            label="kept",
        )


def _draw_metrics(axes: Axes, validation: list[dict[str, Any]], names: Sequence[str]) -> None:
    _prepare(axes, "The task's metrics on the validation split", "steps of the agent (tokens)", "value")
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        _draw_line(axes, validation, name, colour, marker, _readable(name))
    _from_zero_to_one(axes)


def _draw_kl(axes: Axes, progress: Mapping[str, list[float]]) -> None:
    steps = progress.get("time/total_timesteps", [])
    shown = {
        "rollout/kl": ("from the model before PPO", COLOURS[4]),
        "train/approx_kl": ("from the rollout's policy", COLOURS[2]),
    }
    _prepare(axes, "Kullback-Leibler divergence", "steps of the agent (tokens)", "nats a token")
    for name, (label, colour) in shown.items():
        if any(map(math.isfinite, progress.get(name, []))):
            axes.plot(steps, progress[name], color=colour, linewidth=1.6, label=label)


def _draw_bars(axes: Axes, stages: Mapping[str, Any], names: Sequence[str]) -> None:
    _prepare(axes, "Before and after, on the test split (95% intervals)", "", "value")
    axes.grid(visible=False, axis="x")
    width = 0.8 / max(1, len(stages))
    for number, (stage, metrics) in enumerate(stages.items()):
        shown = [(place, metrics[name]) for place, name in enumerate(names) if name in metrics]
        places = [place + (number - (len(stages) - 1) / 2) * width for place, _ in shown]
        values = [estimate["value"] for _, estimate in shown]
        errors = [
            [max(0.0, estimate["value"] - estimate["low"]) for _, estimate in shown],
            [max(0.0, estimate["high"] - estimate["value"]) for _, estimate in shown],
        ]
        axes.bar(places, values, 0.92 * width, color=STAGE_COLOURS.get(stage), label=STAGE_NAMES.get(stage, stage))
        axes.errorbar(places, values, errors, fmt="none", ecolor="#2b2f36", elinewidth=1, capsize=2.5)
        for place, (_, estimate) in zip(places, shown, strict=True):
            text = f"{estimate['value']:.2f}"
            axes.annotate(text, (place, estimate["high"]), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(names)), [_readable(name).replace(" ", "\n") for name in names])
    _from_zero_to_one(axes, above=0.08)


def _draw_line(axes: Axes, validation: list[dict[str, Any]], name: str, colour: str, marker: str, label: str) -> None:
    rows = [(row["timesteps"], row["metrics"][name]) for row in validation if name in row["metrics"]]
    if not rows:
        return
    steps = [step for step, _ in rows]
    low, high = [e["low"] for _, e in rows], [e["high"] for _, e in rows]
    axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
    values = [estimate["value"] for _, estimate in rows]
    axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)


def _prepare(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, **TITLE)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _from_zero_to_one(axes: Axes, above: float = 0.02) -> None:
    """The whole range of a share, where everything drawn is one."""
    low, high = axes.get_ylim()
    if low >= -0.1 and high <= 1.1:
        axes.set_ylim(0, 1 + above)


def _add_legends(row: Sequence[Axes]) -> None:
    """Between titles and axes, where no data are; the titles of a row of panels at one height."""
    labels = [axes.get_legend_handles_labels()[1] for axes in row]
    columns = [len(texts) if sum(map(len, texts)) + 6 * len(texts) < LEGEND_WIDTH else 2 for texts in labels]
    lines = max(-(-len(texts) // count) for texts, count in zip(labels, columns, strict=True))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.012, 1.0), "borderaxespad": 0.1}
    for axes, texts, count in zip(row, labels, columns, strict=True):
        axes.set_title(axes.get_title("left"), pad=8 + 15 * lines, **TITLE)
        if texts:
            legend = axes.legend(ncols=count, frameon=False, fontsize=8.5, handlelength=1.6, **place)
            legend.set_in_layout(False)  # the title's padding is its room


def _readable(name: str) -> str:
    name, _, group = name.partition("/")
    return name.replace("_", " ") + (f", {group}" if group else "")
