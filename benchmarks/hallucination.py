"""Who learns to say "I don't know" where it does not know? Ways to train compared, and the price of a wrong answer.

    python benchmarks/hallucination.py --out runs/hallucination              # three seeds and the sweep: hours
    python benchmarks/hallucination.py --seeds 0 --wrong --out runs/hallucination

Runs ``examples/hallucination.py`` once a seed, and PPO once a seed for each reward of a wrong answer in ``--wrong``.
Prints two Markdown tables of the test split, means over seeds with 95% intervals clustered by question, and draws two
pictures: ``coverage.png``, the share of right ones among the answers against the share of the questions that is
answered, and ``sweep.png``. A curve keeps the answers that a model is surest of, by their probability when it may not
abstain; the mark is what it does by itself. The oracle is the point of SFT-IDK's curve that is best for the reward on
this very split.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import textgym
from textgym.agents import CausalLMPolicy
from textgym.comparison import clustered_mean
from textgym.evaluation import play
from textgym.plotting import COLOURS
from textgym.rewards import Abstain
from textgym.run_folder import EPISODES, RunFolder

ENV = "textgym/KnowledgeQA-v0"
EXAMPLE = Path(__file__).parent.parent / "examples" / "hallucination.py"
FIGURES = (
    "reward",
    "accuracy/known",
    "hallucination_rate/known",
    "hallucination_rate/unknown",
    "abstention_rate/known",
    "abstention_rate/unknown",
)
CURVES = {"SFT": "sft", "SFT-IDK": "sft-idk", "DPO": "dpo", "GRPO": "grpo", "PPO": "ppo"}
WRONG = (0.0, -0.5, -1.5, -4.0)
Rows = list[dict[str, Any]]


def run(folder: Path, seed: int, *options: str) -> Rows:
    """The scored episodes of one run of the example, in order of the samples."""
    subprocess.run([sys.executable, EXAMPLE, "--out", folder, "--seed", str(seed), *options], check=True)
    rows = RunFolder(folder / "benchmark").read_lines(EPISODES)
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["index"])


def row_of(name: str, rows: Rows) -> str:
    """A line of a table: the figures of these episodes."""
    cells = []
    for figure in FIGURES:
        of = [(r["reward"] if figure == "reward" else r["metrics"].get(figure), r["id"]) for r in rows]
        found = clustered_mean(*zip(*[(value, id) for value, id in of if value is not None], strict=True))
        cells.append(f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]")
    return f"| {name} | {' | '.join(cells)} |"


def forced_answers(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each test question: the log-probability of the greedy answer where it may not abstain, and whether right."""
    n_samples = len(textgym.make_vec(ENV, num_envs=1, split="test").unwrapped.samples)
    venv = textgym.make_vec(ENV, num_envs=n_samples, split="test").unwrapped
    policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0, model=model)
    abstention = venv.tokenizer(" I don't know", add_special_tokens=False)["input_ids"][0]
    total = np.zeros(n_samples)
    step = 0

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal step, total
        tensors, _ = policy.obs_to_tensor(observation)
        with torch.no_grad():
            logits = policy.get_distribution(tensors).distribution.logits
        playing = observation["agent_mask"].sum(-1) == step
        if step == 0:
            logits[:, abstention] = -torch.inf
        log_probs = logits.log_softmax(-1)
        actions = log_probs.argmax(-1)
        total += np.where(playing, log_probs.gather(-1, actions[:, None]).squeeze(-1).numpy(), 0.0)
        step += 1
        return actions.numpy()

    with policy.incremental_decoding(n_samples):
        episodes = play(venv, act)
    return total, np.array([Abstain().outcome(episode) == "correct" for episode in episodes])


def curve(log_probs: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy where only the surest answers are kept, from one of them to all."""
    kept = np.arange(1, len(right) + 1)
    return kept / len(right), np.cumsum(right[np.argsort(-log_probs)]) / kept


def oracle(log_probs: np.ndarray, right: np.ndarray, rows: Rows) -> Rows:
    """Episodes of who answers as often as is best for the reward; ``rows`` are some of the same samples, in order."""
    reward = Abstain()
    order = np.argsort(-log_probs)
    gains = np.where(right, reward.correct, reward.wrong)
    answers = np.zeros(len(right), dtype=bool)
    answers[order[: int(np.argmax(np.concatenate([[0.0], np.cumsum(gains[order])])))]] = True
    return [_outcome(row, *outcome) for row, *outcome in zip(rows, answers, right, gains, strict=True)]


def _outcome(row: dict[str, Any], answers: bool, right: bool, gain: float) -> dict[str, Any]:
    shares = {
        "accuracy": answers and right,
        "hallucination_rate": answers and not right,
        "abstention_rate": not answers,
    }
    group = "known" if "accuracy/known" in row["metrics"] else "unknown"
    metrics = {f"{name}/{group}": float(value) for name, value in shares.items()}
    return {**row, "reward": gain if answers else 0.0, "metrics": metrics}


def answered(rows: Rows) -> tuple[float, float]:
    """The share of the questions that is answered, and of right ones among the answers."""
    right = [row["metrics"]["accuracy"] for row in rows if not row["metrics"]["abstention_rate"]]
    return len(right) / len(rows), float(np.mean(right)) if right else float("nan")


def draw_coverage(path: Path, by_seed: dict[int, Rows], curves: dict[int, dict[str, Any]]) -> None:
    """A line a model and a dot an agent; one line for each seed."""
    figure = Figure((7, 4.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["agent"] for rows in by_seed.values() for row in rows))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(CURVES)}
    for seed, rows in by_seed.items():
        for name in names:
            style = {"color": colours.get(name, "black"), "label": name if seed == min(by_seed) else None}
            point = answered([row for row in rows if row["agent"] == name])
            axes.plot(
                *point,
                linestyle="",
                marker={"as-it-is": "x", "best-of-8": "*", "best-of-8-references": "P"}.get(name, "o"),
                **style,
            )
            if name in curves[seed]:
                axes.plot(*curve(*curves[seed][name]), color=style["color"], linewidth=0.9, alpha=0.7)
    axes.set(xlabel="share of the questions that is answered", ylabel="right among the answers", xlim=(0, 1.02))
    axes.set_ylim(0.3, 1.01)
    axes.legend(frameon=False, loc="lower left")
    axes.grid(visible=True, color="#e6e9ee")
    figure.savefig(path, dpi=130)


def draw_sweep(path: Path, sweep: dict[float, Rows]) -> None:
    """How often PPO's agent abstains, and is wrong, against the reward of a wrong answer."""
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    prices = sorted(sweep, reverse=True)
    names = ("abstention_rate/known", "abstention_rate/unknown", "hallucination_rate/unknown", "accuracy/known")
    for colour, name in zip(COLOURS, names, strict=False):
        of = [[row["metrics"][name] for row in sweep[wrong] if name in row["metrics"]] for wrong in prices]
        axes.plot([-wrong for wrong in prices], [np.mean(values) for values in of], "o-", color=colour, label=name)
    axes.set(xlabel="price of a wrong answer (a right one earns 1)", ylabel="share", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    axes.grid(visible=True, color="#e6e9ee")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--wrong", type=float, nargs="*", default=WRONG, help="rewards of a wrong answer to try")
    parser.add_argument("--out", type=Path, default=Path("runs/hallucination"))
    options = parser.parse_args()
    out: Path = options.out
    by_seed = {seed: run(out / f"seed-{seed}", seed) for seed in options.seeds}
    curves = {
        seed: {name: forced_answers(str(out / f"seed-{seed}" / folder)) for name, folder in CURVES.items()}
        for seed in by_seed
    }
    lines = [f"| agent | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
    for agent in dict.fromkeys(row["agent"] for rows in by_seed.values() for row in rows):
        lines.append(row_of(agent, [row for rows in by_seed.values() for row in rows if row["agent"] == agent]))
    best: Rows = []
    for seed, rows in by_seed.items():
        best += oracle(*curves[seed]["SFT-IDK"], [row for row in rows if row["agent"] == "SFT-IDK"])
    lines.append(row_of("oracle", best))
    draw_coverage(out / "coverage.png", by_seed, curves)
    sweep: dict[float, Rows] = {}
    for wrong in options.wrong:
        runs = [
            by_seed[seed]
            if wrong == Abstain().wrong
            else run(out / f"wrong{wrong}" / f"seed-{seed}", seed, f"--wrong={wrong}", "--agents", "PPO")
            for seed in options.seeds
        ]
        sweep[wrong] = [row for rows in runs for row in rows if row["agent"] == "PPO"]
    if sweep:
        lines += ["", f"| PPO, a wrong answer earns | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
        lines += [row_of(str(wrong), rows) for wrong, rows in sweep.items()]
        draw_sweep(out / "sweep.png", sweep)
    (out / "hallucination.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
