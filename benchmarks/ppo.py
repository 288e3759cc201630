"""Speed of one PPO iteration on the CPU, ours beside a hand-written loop and stock Stable-Baselines3, in one run.

    python benchmarks/ppo.py                       # hand-written, generate alone and textgym in turn, five times
    python benchmarks/ppo.py --rows hand textgym sb3     # stock SB3 too: minutes a turn
    python benchmarks/ppo.py --lengths             # time a response token at 64 and at 512 response tokens
    python benchmarks/ppo.py --rows textgym-long --envs 1024 --repeats 1   # the environment's share, context of 2,048

The setting: GPT-2 shape with random weights (4 layers, width 256, 4 heads, vocabulary 8,192), 64 prompts of 32 tokens,
32 response tokens each and no end token, 4 epochs of one full batch, KL to a frozen reference. Rows in bfloat16 are for
a CPU with AMX or AVX-512 BF16; elsewhere they crawl.

The least time that the machine could need for a part is that of its arithmetic, at the measured rate of a large matrix
product in that precision, or of its bytes, at the measured rate of a large copy, whichever is longer. Arithmetic:
matrix products alone, three forward passes an epoch in the update. Bytes: weights and cache once a decoding step,
weights once a pass, and in each step of the optimizer gradients once and parameters and two moments twice.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stable_baselines3
import torch
import torch.nn.functional as F
from random_words import (
    KL_COEF,
    LEARNING_RATE,
    PARTS,
    RandomWords,
    TimedAgent,
    copy_rate,
    medians,
    product_rate,
    score,
    timed_iteration,
    word_tokenizer,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from textgym.agents import PPO, CausalLMPolicy

LAYERS, WIDTH = 4, 256
VOCABULARY, PROMPT, EPOCHS = 8192, 32, 4


def gpt2(positions: int) -> GPT2LMHeadModel:
    """The model of all rows."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_layer=LAYERS, n_embd=WIDTH, n_head=4, n_positions=positions)
    config.bos_token_id = config.eos_token_id = None
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


class HandWritten:
    """The loop that one writes with transformers: generate, a reference pass, four forward and backward passes."""

    def __init__(self, n_envs: int, response: int) -> None:
        self.response = response
        self.tokenizer = word_tokenizer(VOCABULARY)
        self.model = gpt2(PROMPT + response)
        self.reference = copy.deepcopy(self.model).eval()
        self.value_head = nn.Linear(WIDTH, 1)
        self.parameters = [*self.model.parameters(), *self.value_head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, eps=1e-5)
        task = RandomWords(n_envs, PROMPT, VOCABULARY)
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
        ids = generated(self.model.eval(), self.prompts, self.response)
        times["decode"], mark = time.perf_counter() - mark, time.perf_counter()
        texts = self.tokenizer.batch_decode(ids[:, PROMPT:])
        times["environment"], mark = time.perf_counter() - mark, time.perf_counter()
        rewards = torch.zeros(ids.shape[0], self.response)
        rewards[:, -1] = torch.tensor([score(text) for text in texts])
        times["reward"], mark = time.perf_counter() - mark, time.perf_counter()
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


def generated(model: GPT2LMHeadModel, prompts: torch.Tensor, response: int) -> torch.Tensor:
    """transformers' ``generate``, drawing from the whole vocabulary."""
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": response, "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)


class Generate:
    """``generate`` alone, with the weights in this precision."""

    def __init__(self, n_envs: int, response: int, dtype: torch.dtype) -> None:
        self.model = gpt2(PROMPT + response).to(dtype).eval()
        self.prompts = torch.randint(0, VOCABULARY, (n_envs, PROMPT))
        self.response = response

    def iteration(self) -> dict[str, float]:
        start = time.perf_counter()
        generated(self.model, self.prompts, self.response)
        return {"decode": time.perf_counter() - start}


def on_gpt2(algorithm: Any, policy: Any, n_envs: int, response: int, **options: Any) -> TimedAgent:
    """SB3's or our PPO in this setting."""
    context = options.get("context") or PROMPT + response
    return TimedAgent(algorithm, policy, gpt2(context), (n_envs, PROMPT, response), EPOCHS, **options)


ROWS: dict[str, Callable[[int, int], Any]] = {
    "hand": HandWritten,
    "textgym": lambda n, r: on_gpt2(PPO, "CausalLMPolicy", n, r),
    "textgym-bf16": lambda n, r: on_gpt2(PPO, "CausalLMPolicy", n, r, policy_kwargs={"dtype": "bfloat16"}),
    "textgym-long": lambda n, r: on_gpt2(PPO, "CausalLMPolicy", n, r, context=2048, batch_size=64 * r),
    "sb3": lambda n, r: on_gpt2(stable_baselines3.PPO, CausalLMPolicy, n, r),
    "generate": lambda n, r: Generate(n, r, torch.float32),
    "generate-bf16": lambda n, r: Generate(n, r, torch.bfloat16),
}


def least_times(n_envs: int, response: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds by part: see the head of this file."""
    operations, bytes_a_second = product_rate(dtype), copy_rate()
    size = 2 if dtype == torch.bfloat16 else 4
    trunk, head = 12 * LAYERS * WIDTH**2, VOCABULARY * WIDTH
    length, actions = PROMPT + response - 1, n_envs * response

    def attention(n_tokens: int, start: int = 0) -> int:  # of queries at start to n_tokens, over all layers
        return 4 * LAYERS * WIDTH * sum(range(start + 1, n_tokens + 1))

    def needs(arithmetic: float, traffic: float) -> float:
        return max(arithmetic / operations, traffic / bytes_a_second)

    prefill = needs(n_envs * (2 * trunk * PROMPT + attention(PROMPT)), size * trunk)
    cache = 2 * LAYERS * WIDTH * n_envs * sum(range(PROMPT + 1, length + 1))
    steps = needs(
        n_envs * (2 * trunk * (response - 1) + attention(length, PROMPT)),
        size * ((response - 1) * trunk + cache),
    )
    drawing = needs(2 * head * actions, size * head * response)
    forward = n_envs * (2 * trunk * length + attention(length)) + 2 * head * actions
    optimizer = 4 * 7 * (trunk + head) / bytes_a_second
    return {
        "decode": prefill + steps + drawing,
        "reference": needs(forward, size * (trunk + head)),
        "update": EPOCHS * (needs(3 * forward, 2 * size * (trunk + head)) + optimizer),
    }


def measure(rows: dict[str, Any], repeats: int, tokens: dict[str, int]) -> dict[str, dict[str, float]]:
    """Medians over ``repeats`` turns, after one turn that is not counted."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, row in rows.items():
            times = timed_iteration(row)
            if turn:
                seen[name].append(times)
    table = {}
    for name, turns in seen.items():
        table[name] = medians(turns)
        if "update" in turns[0]:  # a whole iteration
            rates = sorted(tokens[name] / t["total"] for t in turns)
            table[name] |= {"rate": statistics.median(rates), "low": rates[0], "high": rates[-1]}
    return table


def show(table: dict[str, dict[str, float]]) -> None:
    base = table["hand"]["rate"] if "hand" in table else None
    print(f"| row | tokens/s (min, max) | x hand | {' | '.join(PARTS)} |")
    print("|---" * (3 + len(PARTS)) + "|")
    for name, row in table.items():
        rate = f"{row['rate']:.0f} ({row['low']:.0f}, {row['high']:.0f})" if "rate" in row else ""
        ratio = f"{row['rate'] / base:.2f}" if base and "rate" in row else ""
        print(f"| {name} | {rate} | {ratio} | {' | '.join(f'{row[p]:.3f}' if p in row else '' for p in PARTS)} |")
    for name, row in table.items():
        if "rate" in row:
            print(f"{name}: the environment's share is {100 * row['environment'] / row['total']:.1f}%")
    for suffix in ("", "-bf16"):
        if f"generate{suffix}" in table and f"textgym{suffix}" in table:
            ours = sum(table[f"textgym{suffix}"][part] for part in ("decode", "environment", "reward"))
            ratio = table[f"generate{suffix}"]["decode"] / ours
            print(
                f"textgym{suffix}'s rollout, environment and all, against generate{suffix}: {ratio:.2f} times as fast"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows_by_default = ["hand", "textgym", "textgym-bf16", "generate", "generate-bf16"]
    parser.add_argument("--rows", nargs="+", default=rows_by_default, choices=ROWS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--response", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", action="store_true", help="ours at 64 and at 512 response tokens")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.lengths:
        sizes = {"64": (options.envs, 64), "512": (options.envs // 8 or 1, 512)}
        rows = {name: ROWS["textgym"](*size) for name, size in sizes.items()}
        tokens = {name: n * r for name, (n, r) in sizes.items()}
    else:
        rows = {name: ROWS[name](options.envs, options.response) for name in options.rows}
        tokens = dict.fromkeys(rows, options.envs * options.response)
    table = measure(rows, options.repeats, tokens)
    if not options.lengths:
        for dtype in (torch.float32, torch.bfloat16):
            table[f"least, {str(dtype).removeprefix('torch.')}"] = least_times(options.envs, options.response, dtype)
    show(table)
    if options.lengths:
        print(f"time a token at 512 over that at 64: {table['64']['rate'] / table['512']['rate']:.2f}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
