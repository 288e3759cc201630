"""Speed of one PPO iteration on the CPU, ours beside a hand-written loop and stock Stable-Baselines3, in one run.

    python benchmarks/ppo.py                       # hand-written and textgym in turn, five times
    python benchmarks/ppo.py --rows hand textgym sb3     # stock SB3 too: minutes a turn
    python benchmarks/ppo.py --rows hand textgym-bf16    # where the CPU has AMX or AVX-512 BF16; elsewhere it crawls
    python benchmarks/ppo.py --lengths             # time a response token at 64 and at 512 response tokens

The setting: GPT-2 shape with random weights (4 layers, width 256, 4 heads, vocabulary 8,192), 64 prompts of 32 tokens,
32 response tokens each and no end token, 4 epochs of one full batch, KL to a frozen reference.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import textgym
from textgym import Sample, Task
from textgym.agents import PPO, CausalLMPolicy

VOCABULARY, PROMPT, EPOCHS, KL_COEF, LEARNING_RATE = 8192, 32, 4, 0.05, 1e-5


class RandomWords(Task):
    """Prompts of random words."""

    def __init__(self, n: int) -> None:
        words = np.random.default_rng(0).integers(0, VOCABULARY, (n, PROMPT))
        self.data = [Sample(id=str(i), prompt=" ".join(f"w{w}" for w in row)) for i, row in enumerate(words)]

    def samples(self, split: str) -> list[Sample]:
        return self.data


def score(text: str) -> float:
    """The reward of all rows: the share of even words."""
    words = text.split()
    return sum(int(word[1:]) % 2 == 0 for word in words) / max(1, len(words))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and no end token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096)


def gpt2(positions: int) -> GPT2LMHeadModel:
    """The model of all rows."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_layer=4, n_embd=256, n_head=4, n_positions=positions)
    config.bos_token_id = config.eos_token_id = None
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


class HandWritten:
    """The loop that one writes with transformers: generate, a reference pass, four forward and backward passes."""

    def __init__(self, n_envs: int, response: int) -> None:
        self.response = response
        self.tokenizer = word_tokenizer()
        self.model = gpt2(PROMPT + response)
        self.reference = copy.deepcopy(self.model).eval()
        self.value_head = nn.Linear(256, 1)
        self.parameters = [*self.model.parameters(), *self.value_head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, eps=1e-5)
        task = RandomWords(n_envs)
        self.prompts = torch.tensor([self.tokenizer(s.prompt)["input_ids"] for s in task.data])

    def log_probs_and_values(self, model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = model(ids, output_hidden_states=True)
        logits = out.logits[:, PROMPT - 1 : -1]
        log_probs = logits.log_softmax(-1)
        taken = log_probs.gather(-1, ids[:, PROMPT:, None]).squeeze(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return taken, self.value_head(out.hidden_states[-1][:, PROMPT - 1 : -1]).squeeze(-1), entropy

    def iteration(self) -> dict[str, float]:
        times, mark = {}, time.perf_counter()
        with torch.no_grad():
            ids = self.model.eval().generate(
                self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                do_sample=True,
                top_k=0,
                max_new_tokens=self.response,
                pad_token_id=0,
            )
        times["decode"], mark = time.perf_counter() - mark, time.perf_counter()
        texts = self.tokenizer.batch_decode(ids[:, PROMPT:])
        rewards = torch.zeros(ids.shape[0], self.response)
        rewards[:, -1] = torch.tensor([score(text) for text in texts])
        times["environment"], mark = time.perf_counter() - mark, time.perf_counter()
        with torch.no_grad():
            reference = self.log_probs_and_values(self.reference, ids)[0]
        times["reference"], mark = time.perf_counter() - mark, time.perf_counter()
        self.model.train()
        for epoch in range(EPOCHS):
            log_probs, values, _ = self.log_probs_and_values(self.model, ids)
            if epoch == 0:
                old = log_probs.detach()
                advantages, returns = self.advantages(rewards - KL_COEF * (old - reference), values.detach())
            ratio = torch.exp(log_probs - old)
            policy_loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
            self.optimizer.zero_grad()
            (policy_loss + 0.5 * F.mse_loss(values, returns)).backward()
            nn.utils.clip_grad_norm_(self.parameters, 0.5)
            self.optimizer.step()
        times["update"] = time.perf_counter() - mark
        return times

    def advantages(self, rewards: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, last = torch.zeros_like(rewards), torch.zeros(len(rewards))
        for t in reversed(range(self.response)):
            following = values[:, t + 1] if t + 1 < self.response else torch.zeros(len(rewards))
            last = rewards[:, t] + following - values[:, t] + 0.95 * last
            advantages[:, t] = last
        returns = advantages + values
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8), returns


class SB3Interface:
    """An agent behind SB3's ``learn``, with its parts timed from outside."""

    def __init__(self, algorithm: Any, policy: Any, n_envs: int, response: int, **policy_kwargs: Any) -> None:
        venv = textgym.make_vec(
            "bench/RandomWords-v0",
            num_envs=n_envs,
            tokenizer=word_tokenizer(),
            max_new_tokens=response,
            max_context=PROMPT + response,
            copy=algorithm is not PPO,
        )
        ours = {"kl_coef": KL_COEF} if algorithm is PPO else {}
        self.steps = n_envs * response
        self.agent = algorithm(
            policy,
            textgym.sb3_vec_env(venv),
            n_steps=response,
            batch_size=self.steps,
            n_epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            gamma=1.0,
            seed=0,
            device="cpu",
            policy_kwargs={"model": gpt2(PROMPT + response), **policy_kwargs},
            **ours,
        )
        self.times: dict[str, float] = defaultdict(float)
        self.time_part(self.agent.env, "step_wait", "environment")
        self.time_part(self.agent.policy, "forward", "decode")
        self.time_part(self.agent.policy, "predict_values", "decode")
        self.time_part(self.agent, "train", "update")
        if algorithm is PPO:
            self.time_part(self.agent.rollout_buffer, "before_advantages", "reference")

    def time_part(self, owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.times[part] += time.perf_counter() - start

        object.__setattr__(owner, name, timed) if not isinstance(owner, nn.Module) else owner.__dict__.update(
            {name: timed}
        )

    def iteration(self) -> dict[str, float]:
        self.times.clear()
        self.agent.learn(self.steps, reset_num_timesteps=False)
        return dict(self.times)


ROWS: dict[str, Callable[[int, int], Any]] = {
    "hand": HandWritten,
    "textgym": lambda n, r: SB3Interface(PPO, "CausalLMPolicy", n, r),
    "textgym-bf16": lambda n, r: SB3Interface(PPO, "CausalLMPolicy", n, r, dtype="bfloat16"),
    "sb3": lambda n, r: SB3Interface(stable_baselines3.PPO, CausalLMPolicy, n, r),
}
PARTS = ["decode", "environment", "reference", "update", "other"]


def measure(rows: dict[str, Any], repeats: int, tokens: dict[str, int]) -> dict[str, dict[str, float]]:
    """Medians over ``repeats`` turns, after one turn that is not counted."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, row in rows.items():
            start = time.perf_counter()
            parts = row.iteration()
            total = time.perf_counter() - start
            parts = {**parts, "other": total - sum(parts.values()), "total": total}
            if turn:
                seen[name].append(parts)
    table = {}
    for name, turns in seen.items():
        medians = {part: statistics.median(t.get(part, 0.0) for t in turns) for part in [*PARTS, "total"]}
        rates = sorted(tokens[name] / t["total"] for t in turns)
        table[name] = {**medians, "rate": statistics.median(rates), "low": rates[0], "high": rates[-1]}
    return table


def show(table: dict[str, dict[str, float]]) -> None:
    base = table["hand"]["rate"] if "hand" in table else None
    print(f"{'row':14} {'tokens/s':>9} {'(min, max)':>16} {'x hand':>7}  seconds a turn: " + "  ".join(PARTS))
    for name, row in table.items():
        ratio = f"{row['rate'] / base:7.2f}" if base else " " * 7
        parts = "  ".join(f"{row[part]:{len(part)}.3f}" for part in PARTS)
        spread = f"({row['low']:.0f}, {row['high']:.0f})"
        print(f"{name:14} {row['rate']:9.0f} {spread:>16} {ratio}  {'':15} {parts}")
    for name, row in table.items():
        print(f"{name}: the environment's share is {100 * row['environment'] / row['total']:.1f}%")


@contextmanager
def registered(n_envs: int) -> Iterator[None]:
    textgym.register(
        "bench/RandomWords-v0",
        task=lambda: RandomWords(n_envs),
        reward=textgym.reward(lambda response: score(response)),
    )
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["hand", "textgym"], choices=ROWS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--response", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", action="store_true", help="ours at 64 and at 512 response tokens")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with registered(options.envs):
        if options.lengths:
            sizes = {"64": (options.envs, 64), "512": (options.envs // 8 or 1, 512)}
            rows = {name: ROWS["textgym"](*size) for name, size in sizes.items()}
            tokens = {name: n * r for name, (n, r) in sizes.items()}
        else:
            rows = {name: ROWS[name](options.envs, options.response) for name in options.rows}
            tokens = dict.fromkeys(rows, options.envs * options.response)
        table = measure(rows, options.repeats, tokens)
    show(table)
    if options.lengths:
        print(f"time a token at 512 over that at 64: {table['64']['rate'] / table['512']['rate']:.2f}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
