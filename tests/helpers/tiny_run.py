"""A task, a model and settings so small that a whole training run takes seconds."""

from __future__ import annotations

import csv

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textgym
from textgym import Sample, Task

ENV = "tests/Sums-v0"
OPTIONS = {
    "total_timesteps": 120,
    "env.num_envs": 4,
    "env.max_context": 48,
    "warm_start.epochs": 1,
    "warm_start.learning_rate": 1e-3,
    "ppo.n_episodes": 8,
    "ppo.learning_rate": 1e-3,
    "ppo.learning_rate_decay": True,
    "ppo.freeze": "embed",
    "validation.evaluations": 2,
    "test.examples": 3,
}


class Sums(Task):
    """Right, or not; the reward can be told to fail."""

    max_new_tokens = 4
    headline_metrics = ("accuracy",)

    def samples(self, split):
        offset = {"train": 0, "validation": 10, "test": 20}[split]
        return [Sample(f"{split}{i}", f"{i + offset}+1=", (str(i + offset + 1),)) for i in range(6)]

    def reward(self, response, references):
        return float(response == references[0]) - len(response) / 10

    def metrics(self, episodes):
        return {"accuracy": sum(e.response == e.sample.references[0] for e in episodes) / len(episodes)}


textgym.register(ENV, task=Sums)


def save_model(folder, tokenizer):
    """Writes a random model of some 20,000 parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def progress_of(path):
    """The rows of a run's progress.csv, as texts by column."""
    with (path / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def without_clock(rows):
    """The rows as numbers, without those that depend on how fast the machine is or where a run was resumed."""
    clock = ("time/fps", "time/time_elapsed", "time/iterations")
    return [{name: float(value or "nan") for name, value in row.items() if name not in clock} for row in rows]


def assert_ended_alike(path, finished):
    """Two runs' results are the same, and so is their progress but for the time that it took."""
    for name in ("results.json", "validation.jsonl", "episodes.jsonl"):
        assert (path / name).read_text() == (finished / name).read_text(), name
    pairs = zip(without_clock(progress_of(path)), without_clock(progress_of(finished)), strict=True)
    assert all(row == pytest.approx(expected, nan_ok=True) for row, expected in pairs)
