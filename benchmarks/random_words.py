"""What the measurements of speed and memory share: a task of random words, a token each, an agent on it, and clocks."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import textgym
from textgym import Sample, Task
from textgym.agents import PPO
from textgym.agents.inference import FixedLinear

KL_COEF, LEARNING_RATE = 0.05, 1e-5
PARTS = ("decode", "environment", "reward", "reference", "update", "other")


class RandomWords(Task):
    """Prompts of random words."""

    def __init__(self, n: int, length: int, vocabulary: int) -> None:
        words = np.random.default_rng(0).integers(0, vocabulary, (n, length))
        self.data = [Sample(id=str(i), prompt=" ".join(f"w{w}" for w in row)) for i, row in enumerate(words)]

    def samples(self, split: str) -> list[Sample]:
        return self.data


def score(response: str) -> float:
    """The share of even words."""
    words = response.split()
    return sum(int(word[1:]) % 2 == 0 for word in words) / max(1, len(words))


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, and no end token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096)


def make_venv(
    sizes: tuple[int, int, int], vocabulary: int, context: int | None = None, **options: Any
) -> textgym.TokenVectorEnv:
    """The environments: (how many, tokens of a prompt, tokens of a reply)."""
    n_envs, prompt, response = sizes
    name = f"bench/RandomWords-{n_envs}-{prompt}-{vocabulary}-v0"
    if name not in gymnasium.registry:
        textgym.register(name, task=partial(RandomWords, n_envs, prompt, vocabulary), reward=textgym.reward(score))
    budgets = {"max_new_tokens": response, "max_context": context or prompt + response}
    return textgym.make_vec(name, num_envs=n_envs, tokenizer=word_tokenizer(vocabulary), **budgets, **options).unwrapped


class TimedAgent:
    """An agent behind SB3's ``learn``, with its parts timed from outside.

    Args:
        algorithm: textgym's PPO, or SB3's.
        policy: Its policy.
        model: The model, whose vocabulary is the tokenizer's.
        sizes: (episodes, tokens of a prompt, tokens of a reply).
        n_epochs: Of an iteration, each of one full batch where the options do not say otherwise.
        policy_kwargs: Beside the model.
        context: Of the environment; None: what prompt and reply take.
        options: Of the algorithm.
    """

    def __init__(
        self,
        algorithm: Any,
        policy: Any,
        model: PreTrainedModel,
        sizes: tuple[int, int, int],
        n_epochs: int,
        policy_kwargs: dict[str, Any] | None = None,
        context: int | None = None,
        **options: Any,
    ) -> None:
        n_envs, _, response = sizes
        venv = make_venv(sizes, model.config.vocab_size, context, copy=algorithm is not PPO)
        ours = {"kl_coef": KL_COEF} if algorithm is PPO else {}
        self.steps = n_envs * response
        self.agent = algorithm(
            policy,
            textgym.sb3_vec_env(venv),
            n_steps=response,
            n_epochs=n_epochs,
            learning_rate=LEARNING_RATE,
            gamma=1.0,
            seed=0,
            policy_kwargs={"model": model, **(policy_kwargs or {})},
            **{"device": "cpu", "batch_size": self.steps, **ours, **options},
        )
        self.times: dict[str, float] = defaultdict(float)
        self.time_part(self.agent.env, "step_wait", "environment")
        self.time_part(venv.setting.reward, "score_at", "reward")
        self.time_part(self.agent, "collect_rollouts", "decode")
        self.time_part(self.agent, "train", "update")
        if algorithm is PPO:
            self.time_part(self.agent.rollout_buffer, "before_advantages", "reference")

    def time_part(self, owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)
        device = self.agent.device.type

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(device)
                self.times[part] += time.perf_counter() - start

        setattr(owner, name, timed)

    def iteration(self) -> dict[str, float]:
        """Seconds by part."""
        self.times.clear()
        self.agent.learn(self.steps, reset_num_timesteps=False)
        for part in ("environment", "reference"):
            self.times["decode"] -= self.times[part]  # of the whole rollout
        self.times["environment"] -= self.times["reward"]  # which it calls
        return dict(self.times)


def timed_iteration(row: Any) -> dict[str, float]:
    """Seconds by part of one iteration of an agent or whatever else has such a method, what is left, and the total."""
    start = time.perf_counter()
    times = row.iteration()
    total = time.perf_counter() - start
    return {**times, "other": total - sum(times.values()), "total": total}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """By part."""
    return {part: statistics.median(turn[part] for turn in turns) for part in (*PARTS, "total") if part in turns[0]}


def product_rate(dtype: torch.dtype, size: int = 2048, device: str = "cpu") -> float:
    """Operations a second of the fastest large matrix product there is, which is not always ``torch.mm``."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fixed = FixedLinear(right, None, None)
    with torch.no_grad():
        return 2 * size**3 / min(quickest(lambda: left @ right, device), quickest(lambda: fixed(left), device))


def copy_rate(n_bytes: int = 2**29, device: str = "cpu") -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / quickest(lambda: target.copy_(source), device)


def quickest(function: Callable[[], Any], device: str = "cpu", repeats: int = 7) -> float:
    """Seconds."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: str) -> None:
    """Waits for the GPU, if it is one."""
    if device == "cuda":
        torch.cuda.synchronize()
