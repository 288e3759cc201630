"""Does PPO teach a model to abstain where it does not know? Over several seeds, beside an oracle.

    python benchmarks/abstention.py --seeds 0 1 2 --out runs/abstention

Trains the built-in model on knowledge QA once a seed (what ``make run`` does) and prints, for the test split, each
stage's figures, and the oracle's: the warm-started model, forced to answer, whose answers are kept where its own
probability of them is above the threshold that is best for the reward on this very split. A run that is there already
is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import learning
import numpy as np
import torch

import textgym
from textgym.agents import CausalLMPolicy
from textgym.evaluation import play
from textgym.rewards import Abstain

ENV = "textgym/KnowledgeQA-v0"
SHOWN = ["reward", "accuracy/known", "hallucination_rate/known", "accuracy/unknown", "hallucination_rate/unknown"]


def forced_answers(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each test question: the log-probability of the greedy answer without abstaining, if right, and if known."""
    venv = textgym.make_vec(ENV, num_envs=1, split="test")
    samples = venv.samples
    venv = textgym.make_vec(ENV, num_envs=len(samples), split="test")
    kwargs = {"model": str(folder / "warm_started")}
    policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0, **kwargs)
    abstention = venv.tokenizer(" I don't know", add_special_tokens=False)["input_ids"][0]
    total = np.zeros(len(samples))
    step = 0

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal step, total
        tensors, _ = policy.obs_to_tensor(observation)
        with torch.no_grad():
            log_probs = policy.get_distribution(tensors).distribution.logits
        playing = observation["agent_mask"].sum(-1) == step
        choice = log_probs.clone()
        if step == 0:
            choice[:, abstention] = -torch.inf
        actions = choice.argmax(-1)
        total += np.where(playing, log_probs.gather(-1, actions[:, None]).squeeze(-1).numpy(), 0.0)
        step += 1
        return actions.numpy()

    with policy.incremental_decoding(len(samples)):
        episodes = play(venv, act)
    right = np.array([Abstain().outcome(episode) == "correct" for episode in episodes])
    return total, right, np.array([bool(sample.meta["known"]) for sample in samples])


def oracle(folder: Path) -> dict[str, float]:
    """The figures of the best threshold."""
    log_probs, right, known = forced_answers(folder)
    reward = Abstain()
    gains = np.where(right, reward.correct, reward.wrong) - reward.abstain
    order = np.argsort(-log_probs)
    kept = int(np.argmax(np.concatenate([[0.0], np.cumsum(gains[order])])))
    answers = np.zeros(len(gains), dtype=bool)
    answers[order[:kept]] = True
    figures = {"reward": reward.abstain + float((gains * answers).mean())}
    for name, group in (("known", known), ("unknown", ~known)):
        figures[f"accuracy/{name}"] = float((answers & right)[group].mean())
        figures[f"hallucination_rate/{name}"] = float((answers & ~right)[group].mean())
    return figures


def run(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """One seed's figures by stage."""
    stages = learning.run(ENV, seed, folder)
    table = {stage: {name: figures[name]["value"] for name in SHOWN} for stage, figures in stages.items()}
    return {**table, "oracle": oracle(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/abstention"))
    arguments = parser.parse_args()
    tables = {seed: run(seed, arguments.out / f"seed-{seed}") for seed in arguments.seeds}
    print(f"{'stage':8} {'seed':>5} " + " ".join(f"{name:>27}" for name in SHOWN))
    for stage in next(iter(tables.values())):
        for seed, table in tables.items():
            print(f"{stage:8} {seed:5} " + " ".join(f"{table[stage][name]:27.3f}" for name in SHOWN))
        averages = [mean(table[stage][name] for table in tables.values()) for name in SHOWN]
        print(f"{stage:8} {'mean':>5} " + " ".join(f"{value:27.3f}" for value in averages))
    (arguments.out / "abstention.json").write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
