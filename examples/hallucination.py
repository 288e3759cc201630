"""Ways to teach a model what it does not know: two kinds of supervised fine-tuning, best-of-n, DPO, GRPO and PPO.

    python examples/hallucination.py --out runs/hallucination     # some 20 minutes on two cores

All begin with the built-in model, and are tested on questions that none has trained on: the model as it is; SFT on
answers; SFT-IDK, where some answers are "I don't know", whatever the model knows; and from there the best of eight
sampled replies, chosen by a reward model or by who has the references, DPO, GRPO and PPO. A right answer earns 1, "I
don't know" 0, a wrong one -1.5.

Prints how often each agent is right about what the model knows, and how often it makes up what it does not know; the
folder gets the benchmark's table and, as coverage.png, the share of right ones among the answers against the share of
the questions that is answered. What is there already is not repeated.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from transformers import TrainingArguments
from transformers.utils import logging

import textgym
from textgym import Sample
from textgym.agent import Agent
from textgym.agents import DPO, GRPO, PPO, SFT, BestOfN, CausalLMAgent, CausalLMPolicy, RewardModelTrainer
from textgym.agents.playing import play_policy
from textgym.agents.preferences import Preference
from textgym.agents.run_settings import LinearDecay, freeze
from textgym.envs.knowledge_qa import ABSTENTION, KnowledgeQA
from textgym.evaluation import evenly_spaced
from textgym.rewards import Abstain, RewardModel
from textgym.run_folder import EPISODES, RunFolder

ENV = "textgym/KnowledgeQA-v0"
SHOWN = ("accuracy/known", "hallucination_rate/known", "hallucination_rate/unknown", "abstention_rate/unknown")
AGENTS = ("as-it-is", "SFT", "SFT-IDK", "best-of-8", "best-of-8-references", "DPO", "GRPO", "PPO")
REPLIES = 8  # to a question, in a group or to choose from
RATED = 3_000  # questions whose replies are rated, for the reward model and for DPO


def trainer_arguments(folder: Path, seed: int, **settings: float) -> TrainingArguments:
    """Quiet ones."""
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "epoch"}
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        str(folder), seed=seed, per_device_train_batch_size=32, use_cpu=on_cpu, **quiet, **settings
    )


def fine_tune(folder: Path, samples: list[Sample], seed: int, may_abstain: bool) -> None:
    """Supervised: on the right answers, some of them exchanged for "I don't know" whatever the model knows."""
    task = KnowledgeQA()
    replies = [task.demonstration(s)[0] if may_abstain else f" {s.references[0]}" for s in samples]
    shown = [Sample(s.id, s.prompt, (reply,)) for s, reply in zip(samples, replies, strict=True)]
    arguments = trainer_arguments(folder, seed, num_train_epochs=2, learning_rate=5e-5, warmup_steps=4)
    trainer = SFT(None, arguments, shown)
    trainer.train()
    trainer.save_model()


def sampled_replies(model: Path, questions: int | None, seed: int, reward: Abstain) -> list[Preference]:
    """What a model answers to questions of the train split, twice over; rated by the reward."""
    venv = textgym.make_vec(ENV, num_envs=512, reward=reward).unwrapped
    policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0, model=str(model))
    torch.manual_seed(seed)
    indices = [index for index in evenly_spaced(len(venv.samples), questions or RATED) for _ in range(2)]
    episodes = play_policy(policy, venv, indices, deterministic=False, seed=seed)
    return [Preference(episode.sample, (episode.response,), episode.reward) for episode in episodes]


def train_reward_model(folder: Path, rated: list[Preference], seed: int) -> None:
    """Learns to foretell the reward of a question and an answer, from the answers that the model has given."""
    arguments = trainer_arguments(folder, seed, num_train_epochs=1, learning_rate=3e-4, warmup_steps=20)
    trainer = RewardModelTrainer(None, arguments, rated)
    trainer.train()
    trainer.save_model()


def train_dpo(folder: Path, model: Path, rated: list[Preference], seed: int, reward: Abstain) -> None:
    """Prefers the best of the answers to a question, "I don't know" among them, to the worst."""
    answers: dict[str, list[Preference]] = defaultdict(list)
    for preference in rated:
        abstaining = replace(preference, replies=(f" {ABSTENTION}",), rating=reward.abstain)
        answers[preference.sample.id] += [preference, abstaining]
    pairs = []
    for of_question in answers.values():
        best, worst = (choose(of_question, key=lambda answer: answer.rating) for choose in (max, min))
        if best.rating > worst.rating:
            pairs.append(Preference(best.sample, (best.replies[0], worst.replies[0])))
    arguments = trainer_arguments(folder, seed, num_train_epochs=1, learning_rate=1e-4, warmup_steps=10)
    trainer = DPO(str(model), arguments, pairs, beta=0.1)
    trainer.train()
    trainer.save_model()


def reinforce(
    folder: Path, model: Path, algorithm: type, steps: int, questions: int | None, seed: int, reward: Abstain
) -> None:
    """PPO, or GRPO with groups of replies to the same question, with the settings of the task's recipe."""
    group = {"group_size": REPLIES} if algorithm is GRPO else {}
    venv = textgym.make_vec(ENV, num_envs=64, reward=reward, **group)
    venv.unwrapped.setting.samples = venv.unwrapped.samples[:questions]
    agent = algorithm(
        "CausalLMPolicy",
        venv,
        learning_rate=LinearDecay(4e-3),
        n_episodes=1024,
        batch_size=1280,
        n_epochs=2,
        gamma=1.0,
        kl_coef=0.02,
        policy_kwargs={"model": str(model), "temperature": 0.7, "optimizer_kwargs": {"eps": 3e-3, "fused": True}},
        seed=seed,
    )
    freeze(agent.policy.model, r"embed_tokens|layers\.0\.")
    agent.learn(steps)
    agent.policy.save_pretrained(folder)


def trained(out: Path, options: argparse.Namespace) -> dict[str, Agent]:
    """The agents that are wanted, each stage of their training done unless its folder is there."""
    seed, questions, reward = options.seed, options.questions, Abstain(wrong=options.wrong)
    samples = KnowledgeQA().warm_start_samples()[:questions]
    sft, abstaining, judge, dpo, grpo, ppo = (out / name for name in ("sft", "sft-idk", "judge", "dpo", "grpo", "ppo"))
    rated = cache(lambda: sampled_replies(abstaining, questions, seed, reward))
    stages: dict[Path, Callable[[], None]] = {
        sft: lambda: fine_tune(sft, samples, seed, may_abstain=False),
        abstaining: lambda: fine_tune(abstaining, samples, seed, may_abstain=True),
        judge: lambda: train_reward_model(judge, rated(), seed),
        dpo: lambda: train_dpo(dpo, abstaining, rated(), seed, reward),
        grpo: lambda: reinforce(grpo, abstaining, GRPO, options.steps, questions, seed, reward),
        ppo: lambda: reinforce(ppo, abstaining, PPO, options.steps, questions, seed, reward),
    }
    needed = {
        "SFT": [sft],
        "SFT-IDK": [abstaining],
        "best-of-8": [abstaining, judge],
        "best-of-8-references": [abstaining],
    }
    needed |= {name: [abstaining, folder] for name, folder in (("DPO", dpo), ("GRPO", grpo), ("PPO", ppo))}
    agents: dict[str, Agent] = {}
    for name in options.agents:
        for folder in needed.get(name, ()):
            if not (folder / "config.json").is_file():
                print(f"training {folder.name}", flush=True)
                stages[folder]()
        if name.startswith("best-of-8"):
            chooser = RewardModel(str(judge)) if name == "best-of-8" else reward
            agents[name] = BestOfN(CausalLMAgent(str(abstaining), deterministic=False), chooser, REPLIES)
        else:
            agents[name] = CausalLMAgent(str(needed[name][-1]) if name in needed else None)
    return agents


def figures(out: Path) -> dict[str, dict[str, float]]:
    """By agent the reward and the shares of right answers, of made-up ones and of abstentions."""
    rows = RunFolder(out).read_lines(EPISODES)
    table: dict[str, dict[str, float]] = {}
    for agent in dict.fromkeys(row["agent"] for row in rows):
        own = [row for row in rows if row["agent"] == agent and row["status"] == "ok"]
        table[agent] = {"reward": mean(row["reward"] for row in own)}
        for name in SHOWN:
            table[agent][name] = mean(row["metrics"][name] for row in own if name in row["metrics"])
    return table


def mean(values: Iterable[float]) -> float:
    """NaN of nothing, as where an agent has failed everywhere."""
    values = list(values)
    return fmean(values) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hallucination"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", type=float, default=-1.5, help="the reward of a wrong answer")
    parser.add_argument("--steps", type=int, default=75_000, help="of GRPO and PPO")
    parser.add_argument("--questions", type=int, help="only so many of each split")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=AGENTS, metavar="AGENT", help=", ".join(AGENTS))
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    agents = trained(options.out, options)
    tasks = {ENV: {"reward": Abstain(wrong=options.wrong)}}
    textgym.benchmark(agents, tasks, episodes=options.questions or 10_000, seeds=1, out=options.out / "benchmark")
    print(f"\n{'agent':20}" + "".join(f"{name:>28}" for name in ("reward", *SHOWN)))
    for agent, values in figures(options.out / "benchmark").items():
        print(f"{agent:20}" + "".join(f"{value:28.3f}" for value in values.values()))


if __name__ == "__main__":
    main()
