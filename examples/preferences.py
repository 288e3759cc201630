"""Two ways to learn from preferences, side by side: SFT, a reward model and PPO; and SFT and DPO.

    python examples/preferences.py                     # both ways, tiny, on made-up reviews: seconds, little is learned
    python examples/preferences.py both --limit 500 --out runs/made-up                                  # more of them
    python examples/preferences.py ppo polarity.jsonl --layout sentence_polarity --opening 4 --out runs/polarity
    python examples/preferences.py dpo polarity.jsonl --layout sentence_polarity --opening 4 --out runs/polarity
    python examples/preferences.py both TM-4.jsonl --layout taskmaster --dpo-epochs 8 --out runs/taskmaster

The file is one that ``load_preferences`` reads: pairs, rankings, or ratings of 0 and 1. Every stage is a folder in
--out, and is taken from there if it is done: the table at the end of the second command has the agents of both.

- The train split is halved by a hash of the prompts: the agents learn from one half, and from the other the judge, a
  reward model that no agent is trained on. The validation split chooses the epoch. On the test split the accuracy of
  both reward models is measured, and on its prompts the benchmark is played: the judge's probability is the score.
- SFT imitates the preferred replies: the first ones of pairs and rankings, those that are rated 1.
- The reward models learn from the preferences as they are, PPO from one of them, with a KL to the SFT model.
- DPO learns from pairs; two replies to the same prompt that are rated differently are one (``paired``).
- With --opening N an agent is given the first N words of a reply with the prompt, and goes on from there. That is for
  files in which the prompt is always the same; they are halved by the samples' ids.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, TrainingArguments

import textgym
from textgym import Episode, Sample, Task
from textgym.agents import (
    DPO,
    PPO,
    SFT,
    CausalLMAgent,
    Preference,
    ReferenceAgent,
    RewardModelTrainer,
    load_preferences,
    paired,
    preference_accuracy,
)
from textgym.benchmark_report import difference
from textgym.hashing import hashed_share
from textgym.rewards import RewardModel
from textgym.run_folder import EPISODES, RunFolder

ENV = "example/Preferences-v0"
REWARDS = ("reward_model", "judge")
TEMPERATURE = 0.7
HELD_OUT = 400  # validation preferences, at most
COMPARED = (("sft", "base"), ("ppo", "sft"), ("dpo", "sft"), ("ppo", "dpo"))
TINY = {"epochs": 1, "ppo_steps": 128, "rollout": 16, "limit": 32, "episodes": 8, "max_new_tokens": 16}

Data = dict[str, list[Preference]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", choices=("ppo", "dpo", "both"), default="both")
    parser.add_argument("file", nargs="?", help="the preferences; made-up reviews where it is left out")
    parser.add_argument("--layout", help="of the file, one of textgym.agents.preferences.LAYOUTS")
    parser.add_argument("--opening", type=int, default=0, help="words of a reply that are given with the prompt")
    parser.add_argument("--out", type=Path, help="the folder; without one the run is tiny and leaves nothing")
    parser.add_argument("--limit", type=int, help="how many preferences of each part are used")
    parser.add_argument("--epochs", type=int, default=3, help="of SFT and of the reward models")
    parser.add_argument("--dpo-epochs", type=int, default=1)
    parser.add_argument("--ppo-steps", type=int, default=60_000, help="tokens that PPO writes")
    parser.add_argument("--rollout", type=int, default=128, help="episodes of PPO between updates")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--episodes", type=int, default=400, help="test prompts in the benchmark")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.out is not None:
        return run(args, args.out)
    vars(args).update(TINY)
    with TemporaryDirectory() as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, out: Path) -> None:
    data = parts(load_preferences(args.file or made_up(), args.layout), args)
    print({name: len(part) for name, part in data.items()}, "preferences")
    sft = stage(out / "sft", lambda: supervised(args, data))
    stage(out / "judge", lambda: reward_model(args, sft, data, "judge"))
    task = Asked(args, data)
    textgym.register(ENV, task=task, max_new_tokens=args.max_new_tokens)
    if args.pipeline != "dpo":
        rewarder = stage(out / "reward_model", lambda: reward_model(args, sft, data, "train"))
        stage(out / "ppo", lambda: ppo(args, sft, rewarder))
    if args.pipeline != "ppo":
        stage(out / "dpo", lambda: dpo(args, sft, data))
    if (out / "reward_model").exists():
        task.reward_model = probability(out / "reward_model")
    report(args, out, data)


def stage(folder: Path, train: Callable[[], Callable[[Path], object]]) -> Path:
    """Trains, and saves by what ``train`` returns, unless that has been done."""
    start, cpu = time.perf_counter(), time.process_time()
    if not folder.exists():
        save = train()
        part = folder.with_name(f"{folder.name}.part")
        save(part)
        part.rename(folder)
        print(f"{folder.name}: {time.perf_counter() - start:.0f} s (CPU {time.process_time() - cpu:.0f} s)", flush=True)
    return folder


# ------------------------------------------------------------------------ data


def made_up() -> list[dict[str, str]]:
    """Reviews that go on well rather than badly, made of the built-in task's; one pair in four the other way round."""
    samples = textgym.make("textgym/SentimentContinuation-v0", level="turn", split="all").unwrapped.setting.samples
    good, bad = ([sample for sample in samples if sample.meta["label"] == label] for label in ("positive", "negative"))
    rows = []
    for one, other in zip(good, bad, strict=False):
        replies = [f" {one.references[0]}", f" {other.references[0]}"]
        chosen, rejected = reversed(replies) if hashed_share(f"dissent\n{one.id}") < 0.25 else replies
        rows.append({"prompt": one.prompt, "chosen": chosen, "rejected": rejected})
    return rows


def parts(splits: Data, args: argparse.Namespace) -> Data:
    """The splits, with the judge's half of the train split as a part of its own."""
    found: Data = {"train": [], "judge": [], "validation": splits["validation"][:HELD_OUT], "test": splits["test"]}
    for preference in splits["train"]:
        key = preference.sample.id if args.opening else json.dumps(preference.sample.messages)
        found["train" if hashed_share(f"judge\n{key}") < 0.5 else "judge"].append(preference)
    return {name: part[: args.limit] for name, part in found.items()}


def is_preferred(preference: Preference) -> bool:
    """Whether its first reply is: the others are worse, or it is rated 1."""
    return preference.rating in (None, 1)


def imitated(preferences: Sequence[Preference]) -> list[Sample]:
    return [
        Sample(preference.sample.id, preference.sample.prompt, preference.replies[:1])
        for preference in preferences
        if is_preferred(preference)
    ]


class Asked(Task):
    """The prompts of the agents' half and of the test split, once each, with a preferred reply where there is one.

    In the test split there always is.
    """

    headline_metrics = ("reward_model",)

    def __init__(self, args: argparse.Namespace, data: Data) -> None:
        preferred = [preference for preference in data["test"] if is_preferred(preference)]
        self.splits = {
            name: asked(part, args.opening) for name, part in (("train", data["train"]), ("test", preferred))
        }
        self.reward_model: RewardModel | None = None

    def samples(self, split: str) -> list[Sample]:
        return self.splits[split]

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The probability that PPO was trained on, beside the judge's."""
        if self.reward_model is None:
            return {}
        return {
            "reward_model": fmean(score.value for score in self.reward_model.score(episodes) if score.value is not None)
        }


def asked(preferences: Sequence[Preference], opening: int) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for preference in preferences:
        sample, reply = preference.sample, preference.replies[0]
        begun = re.match(rf"(\s*\S+){{{opening}}}(?=\s)", reply) if opening else None
        if opening and (begun is None or not isinstance(sample.prompt, str)):
            continue
        given, rest = (begun[0], reply[begun.end() :]) if begun else ("", reply)
        prompt = f"{sample.prompt}{given}" if opening else sample.prompt
        one = Sample(sample.id, prompt, (rest,) if is_preferred(preference) else ())
        samples.setdefault(json.dumps(one.messages), one)
    return list(samples.values())


# -------------------------------------------------------------------- training


def arguments(folder: str, args: argparse.Namespace, **settings: Any) -> TrainingArguments:
    """The best epoch on the validation split is kept."""
    common: dict[str, Any] = {
        "num_train_epochs": args.epochs, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64,
        "warmup_steps": 20, "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
        "save_only_model": True, "save_total_limit": 1, "logging_strategy": "epoch", "report_to": "none",
        "disable_tqdm": True, "dataloader_pin_memory": False, "use_cpu": True, "seed": args.seed,
    }  # fmt: skip
    return TrainingArguments(folder, **common | settings)


def supervised(args: argparse.Namespace, data: Data) -> Callable[[Path], object]:
    with TemporaryDirectory() as folder:
        settings = arguments(folder, args, learning_rate=1e-3)
        trainer = SFT(None, settings, imitated(data["train"]), imitated(data["validation"]))
        trainer.train()
    return trainer.save_model


def reward_model(args: argparse.Namespace, sft: Path, data: Data, part: str) -> Callable[[Path], object]:
    with TemporaryDirectory() as folder:
        seed = args.seed + (part == "judge")
        settings = arguments(folder, args, learning_rate=5e-4, metric_for_best_model="accuracy", seed=seed)
        model = AutoModelForCausalLM.from_pretrained(sft)
        trainer = RewardModelTrainer(model, settings, data[part], data["validation"], tokenizer=str(sft))
        trainer.train()
    return trainer.save_model


def probability(folder: Path) -> RewardModel:
    return RewardModel(folder, activation="probability", truncate=True)


def ppo(args: argparse.Namespace, sft: Path, rewarder: Path) -> Callable[[Path], object]:
    env = textgym.make_vec(
        ENV, num_envs=min(64, args.rollout), reward=probability(rewarder), split="train", tokenizer=str(sft)
    )
    agent = PPO(
        "CausalLMPolicy",
        env,
        n_episodes=args.rollout,
        batch_size=1024,
        n_epochs=2,
        learning_rate=lambda remaining: 3e-4 * remaining,
        gamma=1.0,
        gae_lambda=1.0,
        vf_coef=0.1,
        kl_coef=0.02,
        policy_kwargs={"model": str(sft), "temperature": TEMPERATURE},
        seed=args.seed,
        verbose=1,
    )
    agent.learn(args.ppo_steps)
    return agent.policy.save_pretrained


def dpo(args: argparse.Namespace, sft: Path, data: Data) -> Callable[[Path], object]:
    pairs = paired(data["train"], seed=args.seed)
    if not pairs:
        raise SystemExit("DPO needs replies to the same prompt that are rated differently, and the file has none.")
    print(f"dpo: {len(pairs)} pairs of replies to the same prompt")
    with TemporaryDirectory() as folder:
        last = {"warmup_steps": 5, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        settings = arguments(folder, args, num_train_epochs=args.dpo_epochs, learning_rate=1e-4, **last)
        trainer = DPO(str(sft), settings, pairs)
        trainer.train()
    return trainer.save_model


# ------------------------------------------------------------------ evaluation


def report(args: argparse.Namespace, out: Path, data: Data) -> None:
    """Prints and keeps the accuracy of the reward models, the benchmark's table and the paired differences."""
    held_out = {name: accuracy(args, out / name, data["test"]) for name in REWARDS if (out / name).exists()}
    (out / "reward_model.json").write_text(json.dumps(held_out, indent=2))
    lines = [
        f"- {name}, held-out {about}: {shown(of)}" for name, found in held_out.items() for about, of in found.items()
    ]
    folder = out / "benchmark"
    shutil.rmtree(folder, ignore_errors=True)  # that of fewer agents
    textgym.benchmark(
        agents(out), {ENV: {"reward": probability(out / "judge")}}, out=folder, episodes=args.episodes, seeds=1
    )
    rows = RunFolder(folder).read_lines(EPISODES)
    of = {name: [row for row in rows if row["agent"] == name] for name in dict.fromkeys(row["agent"] for row in rows)}
    for one, other in COMPARED:
        if one in of and other in of:
            lines.append(f"- {one} less {other}, judged on the same prompts: {shown(difference(of[one], of[other]))}")
    text = "\n".join([(folder / "table.md").read_text(encoding="utf-8"), *lines, ""])
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def accuracy(args: argparse.Namespace, folder: Path, test: Sequence[Preference]) -> dict[str, Any]:
    """Of a trained reward model: on any two replies that are rated differently, and on two to the same prompt."""
    with TemporaryDirectory() as temporary:
        trainer = RewardModelTrainer(str(folder), arguments(temporary, args), eval_dataset=test)
        found: dict[str, Any] = {"calibration error": trainer.evaluate()["eval_calibration_error"]}
    found["pairs"] = preference_accuracy(trainer.reward, test)
    if trainer.kind != "ranking" and (pairs := paired(test)):
        found["pairs of the same prompt"] = preference_accuracy(trainer.reward, pairs)
    return found


def agents(out: Path) -> dict[str, Any]:
    """They reply as PPO's policy does in training: sampled, at its temperature."""
    models = {"base": None, **{name: str(out / name) for name in ("sft", "ppo", "dpo") if (out / name).exists()}}
    sampled = {name: CausalLMAgent(m, deterministic=False, temperature=TEMPERATURE) for name, m in models.items()}
    return {**sampled, "reference": ReferenceAgent()}


def shown(estimate: Any) -> str:
    if isinstance(estimate, float):
        return f"{estimate:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}] of {estimate['n']}"


if __name__ == "__main__":
    main()
