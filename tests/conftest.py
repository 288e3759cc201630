"""Small tokenizers, built here, so that no test needs a network; and ``import tiny_run``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import textgym
from textgym import Episode, Sample, Task

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

CORPUS = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Japan is Tokyo.",
    "user: What is the capital of Italy? assistant: The capital of Italy is Rome. I don't know.",
    "Guess a number between one and ten. Higher. Lower. Right!",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    special_tokens: Sequence[str] = ("<|endoftext|>",), chat_template: str | None = None, **names: str
) -> PreTrainedTokenizerBase:
    """A byte-level BPE of some 300 tokens: every text survives encoding and decoding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{"eos_token": "<|endoftext|>", **names})
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """No chat template; pads with its eos, as GPT-2 and Qwen do."""
    return make_tokenizer(pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    """ChatML; three different tokens for eos, for the end of a message and for padding."""
    return make_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"), CHATML, pad_token="<|pad|>")


class Capitals(Task):
    """One turn, a few samples."""

    max_new_tokens = 8
    capitals = (("France", "Paris"), ("Germany", "Berlin"), ("Japan", "Tokyo"), ("Italy", "Rome"))

    def samples(self, split: str) -> list[Sample]:
        return [
            Sample(id=country, prompt=f"The capital of {country} is", references=(capital,))
            for country, capital in self.capitals
        ]

    def reward(self, response: str, references: Sequence[str]) -> float:  # type: ignore[override]
        return float(references[0] in response)

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        return {"length": sum(len(episode.response) for episode in episodes) / len(episodes)}


class Guess(Task):
    """Several turns, with chance in the environment's part and a reward at each turn's end."""

    max_new_tokens = 6
    stop = ("!",)
    reward = textgym.reward(lambda response: len(response) / 100, name="length", when="turn")

    def samples(self, split: str) -> list[Sample]:
        return [
            Sample(id=str(i), prompt=[{"role": "user", "content": f"Guess {i}."}], meta={"number": str(i)})
            for i in range(5)
        ]

    def respond(self, episode: Episode, rng: np.random.Generator) -> str | None:
        if episode.sample.meta["number"] in episode.response or len(episode.responses) >= 3:
            return None
        return f"No. Here is a hint: {rng.integers(1000)}"


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


@pytest.fixture
def capitals() -> Capitals:
    return Capitals()


@pytest.fixture
def guess() -> Guess:
    return Guess()
