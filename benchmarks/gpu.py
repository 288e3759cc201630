"""Speed of PPO on one GPU, in bfloat16, beside what the machine could do.

    python benchmarks/gpu.py                       # both shapes, one epoch and four: minutes
    python benchmarks/gpu.py --shapes qwen --tiny --device cpu     # whether it runs at all

Shapes of Qwen2.5-0.5B and of Llama-3.2-1B with random weights, 256 environments, prompts of 128 tokens, replies of 256,
minibatches of 16,384 tokens of the agent, KL to a frozen reference. Before anything is timed, decoding and the update's
pass are compared with a pass in float32.

The limit of decoding is, step by step, the time of its arithmetic at the measured rate of a large bfloat16 product, or
of its bytes at the measured rate of a large copy, whichever is longer: weights and cache read once, logits written and
read once in float32. The update's rate counts model FLOPs, three forward passes a token, whatever is computed again.
Where TRL can be imported, its GRPO with ``generate`` does as many updates on as many tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from random_words import PARTS, TimedAgent, copy_rate, medians, product_rate, score, timed_iteration, word_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from textgym.agents import PPO
from textgym.agents.decoding import IncrementalDecoder
from textgym.agents.inference import autocast, inference_copy

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}


class Sizes(NamedTuple):
    """Of an iteration."""

    n_envs: int
    prompt: int
    response: int

    @property
    def context(self) -> int:
        return self.prompt + self.response


def config_of(shape: str, positions: int, tiny: bool) -> PretrainedConfig:
    common = {"max_position_embeddings": positions, "tie_word_embeddings": True}
    common |= {"bos_token_id": None, "eos_token_id": None}
    if shape == "qwen":
        sizes = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
        heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
        if tiny:
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return Qwen2Config(**{**sizes, **heads, **common, **(TINY if tiny else {})})
    sizes = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 16 if tiny else 64}
    return LlamaConfig(**{**sizes, **heads, **common, **(TINY if tiny else {})})


def model_of(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def check(config: PretrainedConfig, sizes: Sizes, device: str) -> None:
    """Raises RuntimeError where bfloat16 is further from float32 than its rounding explains."""
    model = model_of(config).to(device).eval()
    trunk = model.base_model
    ids = torch.randint(0, config.vocab_size, (8, sizes.context), device=device)
    with torch.no_grad():
        exact = trunk(input_ids=ids, use_cache=False)[0][:, -1]
        with autocast(device, torch.bfloat16):
            whole = trunk(input_ids=ids, use_cache=False)[0][:, -1].float()
            decoder = IncrementalDecoder(inference_copy(trunk, torch.bfloat16), len(ids))
            for length in range(sizes.context - 16, sizes.context + 1):
                lengths = torch.full((len(ids),), length, device=device)
                decoded = decoder.advance(ids[:, :length], lengths).float()
    scale = exact.abs().mean()
    for name, found in (("the update's pass", whole), ("decoding", decoded)):
        error = float((found - exact).abs().mean() / scale)
        print(f"{name} in bfloat16: {100 * error:.2f}% from float32")
        if error > 0.05:
            raise RuntimeError(f"{name} in bfloat16 is {100 * error:.1f}% from float32; nothing is timed.")


class Work(NamedTuple):
    """What an iteration asks of the machine at least."""

    decode_limit: float  # seconds
    update_operations: float  # of one epoch


def work(config: Any, sizes: Sizes, operations: float, bandwidth: float) -> Work:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    trunk, head = config.num_hidden_layers * layer, config.vocab_size * config.hidden_size

    def attention(first: int, last: int) -> int:  # of the queries at these places
        return 4 * config.num_hidden_layers * queries * sum(range(first, last + 1))

    limit = max(
        sizes.n_envs * (2 * trunk * sizes.prompt + attention(1, sizes.prompt)) / operations, 2 * trunk / bandwidth
    )
    for length in range(sizes.prompt, sizes.context):
        arithmetic = sizes.n_envs * (2 * (trunk + head) + attention(length, length))
        cache = 2 * 2 * config.num_hidden_layers * keys * length * sizes.n_envs
        logits = 2 * 4 * config.vocab_size * sizes.n_envs
        limit += max(arithmetic / operations, (2 * (trunk + head) + cache + logits) / bandwidth)
    forward = 2 * trunk * (sizes.context - 1) + attention(1, sizes.context - 1) + 2 * head * sizes.response
    return Work(limit, 3 * sizes.n_envs * forward)


def trl_iterations(config: PretrainedConfig, sizes: Sizes, n_epochs: int, batch_size: int, repeats: int) -> list[float]:
    """Seconds of each iteration of TRL's GRPO with ``generate``; empty where there is no TRL."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return []
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

    tokenizer = word_tokenizer(config.vocab_size)
    tokenizer.pad_token = "w0"
    n_steps = sizes.n_envs * sizes.response // batch_size  # of the optimizer in an epoch
    prompts = torch.randint(0, config.vocab_size, (sizes.n_envs // 8, sizes.prompt))
    settings = GRPOConfig(
        output_dir="trl",
        per_device_train_batch_size=sizes.n_envs // n_steps,
        steps_per_generation=n_steps,
        num_iterations=n_epochs,
        num_generations=8,
        max_completion_length=sizes.response,
        max_steps=(repeats + 1) * n_steps * n_epochs,
        learning_rate=1e-5,
        beta=0.05,
        bf16=True,
        report_to=[],
        save_strategy="no",
    )
    GRPOTrainer(
        model=model_of(config),
        reward_funcs=lambda completions, **_: [score(text) for text in completions],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": tokenizer.batch_decode(prompts)}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    ends = marks[n_steps * n_epochs - 1 :: n_steps * n_epochs]
    return [after - before for before, after in pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=("qwen", "llama"), default=["qwen", "llama"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try whether it runs")
    options = parser.parse_args()
    sizes, batch_size = (Sizes(8, 16, 24), 64) if options.tiny else (Sizes(256, 128, 256), 16_384)
    operations = product_rate(torch.bfloat16, 512 if options.tiny else 8192, options.device)
    bandwidth = copy_rate(2**24 if options.tiny else 2**30, options.device)
    print(f"measured: {operations / 1e12:.1f} TFLOP/s in bfloat16, {bandwidth / 1e9:.0f} GB/s")
    lines = [f"| shape, epochs | tokens/s | {' | '.join(PARTS)} | decode, of its limit | update, of the rate | x TRL |"]
    lines.append("|---" * (len(PARTS) + 5) + "|")
    for shape in options.shapes:
        config = config_of(shape, sizes.context, options.tiny)
        check(config, sizes, options.device)
        least = work(config, sizes, operations, bandwidth)
        for n_epochs in options.epochs:
            kwargs = {"batch_size": batch_size, "device": options.device}
            agent = TimedAgent(
                PPO, "CausalLMPolicy", model_of(config), sizes, n_epochs, {"dtype": "bfloat16"}, **kwargs
            )
            found = medians([timed_iteration(agent) for _ in range(options.repeats + 1)][1:])
            del agent
            theirs = trl_iterations(config, sizes, n_epochs, batch_size, options.repeats)
            ratio = f"{statistics.median(theirs) / found['total']:.2f}" if theirs else "no TRL"
            rate = n_epochs * least.update_operations / found["update"] / operations
            cells = [f"{found[part]:.3f}" for part in PARTS]
            cells += [f"{100 * least.decode_limit / found['decode']:.0f}%", f"{100 * rate:.0f}%", ratio]
            tokens = sizes.n_envs * sizes.response / found["total"]
            lines.append(f"| {shape}, {n_epochs} | {tokens:.0f} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
