"""Peak memory of one PPO update with a large vocabulary, beside what it cannot do without.

    python benchmarks/memory.py                    # each row in a process of its own; Linux

The setting: Qwen2.5-0.5B's width and vocabulary (896; 151,936, tied), 4 layers, random weights, 8 segments of 1,024
tokens, half of them the agent's, one minibatch, Adam. The need is that of the parameters, their gradients and two
moments (16 bytes a parameter), and of the activations of the trunk, without logits: the memory that its forward pass
adds. A row's peak is that of its second update, over what the process held before there was a model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_words import TimedAgent
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from textgym.agents import PPO

VOCABULARY, SEGMENTS, PROMPT, RESPONSE = 151_936, 8, 512, 512
GIGABYTE = 2**30


def qwen(layers: int = 4) -> Qwen2ForCausalLM:
    """The model of all rows."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=PROMPT + RESPONSE,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def memory(field: str) -> int:
    """Bytes: ``VmRSS``, what the process holds, or ``VmHWM``, the most that it held since :func:`reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def random_ids() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (SEGMENTS, PROMPT + RESPONSE))


def need() -> int:
    """See the head of this file."""
    model = qwen()
    ids = random_ids()
    reset_peak()
    before = memory("VmRSS")
    hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    activations = memory("VmRSS") - before
    if not hidden.requires_grad:
        raise RuntimeError("the pass keeps no activations")
    return 16 * sum(p.numel() for p in model.parameters()) + activations


def peak_of(make_update: Callable[[], Callable[[], Any]]) -> int:
    start = memory("VmRSS")
    update = make_update()
    update()  # the optimizer's moments are made in the first
    reset_peak()
    update()
    return memory("VmHWM") - start


def plain() -> Callable[[], None]:
    """A hand-written update, with logits of all tokens."""
    model, value_head = qwen(), nn.Linear(896, 1)
    parameters = [*model.parameters(), *value_head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-6, eps=1e-5, fused=True)
    ids = random_ids()

    def update() -> None:
        hidden = model.base_model(input_ids=ids, use_cache=False)[0][:, PROMPT - 1 : -1]
        log_probs = model.lm_head(hidden).log_softmax(-1).gather(-1, ids[:, PROMPT:, None])
        optimizer.zero_grad()
        (log_probs.mean() + value_head(hidden).square().mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()

    return update


def ours(**options: Any) -> Callable[[], None]:
    """``PPO.train`` over a rollout."""
    sizes = SEGMENTS, PROMPT, RESPONSE
    agent = TimedAgent(PPO, "CausalLMPolicy", qwen(), sizes, n_epochs=1, kl_coef=0.0, **options).agent
    agent.learn(SEGMENTS * RESPONSE)
    return agent.train


ROWS: dict[str, Callable[[], int]] = {
    "need": need,
    "hand-written": lambda: peak_of(plain),
    "textgym": lambda: peak_of(ours),
    "textgym, micro_batch_size=512": lambda: peak_of(lambda: ours(micro_batch_size=512)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, help="measure only this one, in this process, and print its bytes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.row:
        print(json.dumps(ROWS[options.row]()))
        return
    found = {}
    for name in options.rows:
        printed = subprocess.run([sys.executable, __file__, "--row", name], check=True, capture_output=True, text=True)
        found[name] = json.loads(printed.stdout.splitlines()[-1])
        share = f"{found[name] / found['need']:.2f}" if "need" in found else ""
        print(f"| {name} | {found[name] / GIGABYTE:.2f} GB | {share} |", flush=True)


if __name__ == "__main__":
    main()
