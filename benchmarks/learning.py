"""Does PPO improve each task's reward over the warm start? The built-in model, every task, several seeds.

    python benchmarks/learning.py --out runs/learning                      # everything: hours
    python benchmarks/learning.py --tasks Math Copy --seeds 0 --out runs/learning

Runs what ``textgym train ENV --seed S`` does, and prints for the test split each stage's reward and main metric as a
Markdown table. A figure is the mean over seeds, and so are the ends of its 95% interval: it is as wide as one seed's,
since all seeds are tested on the same samples. A run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

from transformers.utils import logging

import textgym
from textgym.agents.training import Settings, Training
from textgym.plotting import headline

STAGES = ("base", "sft", "ppo")
Figures = dict[str, dict[str, dict[str, float]]]  # by stage and metric: value, low, high, n


def run(env: str, seed: int, folder: Path) -> Figures:
    """One seed's figures, from its folder where they are there already."""
    results = folder / "results.json"
    if not results.is_file() or "ppo" not in json.loads(results.read_text())["stages"]:
        start = time.perf_counter()
        training = Training.resume(folder) if folder.exists() else Training.start(Settings(env, seed=seed), folder)
        training.run()
        print(f"{env}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads(results.read_text())["stages"]


def over_seeds(runs: list[Figures], stage: str, metric: str) -> dict[str, float]:
    """The means of a figure and of the ends of its interval."""
    return {end: mean(figures[stage][metric][end] for figures in runs) for end in ("value", "low", "high")}


def row(env: str, runs: list[Figures]) -> str:
    """A line of the table."""
    task = textgym.make(env, level="turn").unwrapped.task
    metric = headline(list(runs[0]["sft"]), task.headline_metrics)[0]
    cells = []
    for name in ("reward", metric):
        for stage in STAGES:
            figure = over_seeds(runs, stage, name)
            cells.append(f"{figure['value']:.3f} [{figure['low']:.2f}, {figure['high']:.2f}]")
    improved = over_seeds(runs, "ppo", "reward")["low"] > over_seeds(runs, "sft", "reward")["high"]
    name = env.partition("/")[2].rpartition("-")[0]
    return f"| {name} | {metric} | {' | '.join(cells)} | {'yes' if improved else 'no'} |"


def main() -> None:
    names = {id.partition("/")[2].rpartition("-")[0]: id for id in textgym.registered_ids()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(names), choices=list(names), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    lines = [
        "| task | metric | reward: as it is | warm start | PPO | metric: as it is | warm start | PPO | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in arguments.tasks:
        folder = arguments.out / name
        lines.append(row(names[name], [run(names[name], seed, folder / f"seed-{seed}") for seed in arguments.seeds]))
        (arguments.out / "learning.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
