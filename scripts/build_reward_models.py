"""Builds the two small models that reward tasks: the sentiment of a review, the fluency of a story.

Run:
    python scripts/build_reward_models.py          # writes envs/data/{sentiment,stories}, in minutes on two cores

Both are trained with transformers' Trainer on text that the tasks themselves make, read the built-in model's tokens,
and are deterministic for a seed (on the same machine and the same version of torch).

The classifier reads favourable and unfavourable reviews, whole or a sentence of one. A third class, ``unclear``, holds
the same words in disorder or over and over, lest text that is none be rewarded.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from textgym.envs.creative_writing import STORY_MODEL, story
from textgym.envs.invention import Chance
from textgym.envs.sentiment_continuation import SENTIMENT_MODEL, review
from textgym.rendering import load_tokenizer

LABELS = ("negative", "positive", "unclear")
N_TRAIN, N_TEST, EPOCHS = 20_000, 2_000, 4
IGNORED = -100  # the label that transformers' losses leave out
Example = dict[str, torch.Tensor]


def sentiment_texts(n: int, seed: int) -> list[tuple[str, int]]:
    """Texts and the indices of their labels, a quarter of them unclear."""
    chance = Chance((2026, 11, 3, seed))
    found = []
    for _ in range(n):
        _, text, positive = review(chance)
        sentences = re.split(r"(?<=\.) ", text)
        if len(sentences) > 1 and chance.happens(0.3):
            text = sentences[-1] if chance.happens(0.5) else sentences[0]
        if chance.happens(0.25):
            found.append((disordered(text, chance), LABELS.index("unclear")))
        else:
            found.append((text, int(positive)))
    return found


def disordered(text: str, chance: Chance) -> str:
    """The words in another order, or a few of them over and over."""
    words = text.split()
    if chance.happens(0.5):
        return " ".join(chance.some_of(words, len(words)))
    start = chance.between(0, len(words) - 1)
    return " ".join(words[start : start + chance.between(1, 3)] * chance.between(3, 7))


def sentiment_examples(n: int, seed: int) -> list[Example]:
    """Ids (T,) and a label ()."""
    tokenizer = load_tokenizer(None)
    return [
        {"input_ids": torch.tensor(tokenizer(text)["input_ids"]), "labels": torch.tensor(label)}
        for text, label in sentiment_texts(n, seed)
    ]


def story_examples(n: int, seed: int) -> list[Example]:
    """Ids (T,) of an end token, a story and an end token; they are the labels too."""
    tokenizer = load_tokenizer(None)
    chance = Chance((2026, 11, 4, seed))
    end = tokenizer.eos_token_id
    rows = [torch.tensor([end, *tokenizer(" " + story(chance)[1])["input_ids"], end]) for _ in range(n)]
    return [{"input_ids": row, "labels": row} for row in rows]


def collate(batch: Sequence[Example]) -> Example:
    """Right-padded ``input_ids`` and ``attention_mask`` (B, T); ``labels`` (B, T) where they are tokens, else (B,)."""
    ids, labels = [example["input_ids"] for example in batch], [example["labels"] for example in batch]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        if labels[0].ndim
        else torch.stack(labels),
    }


def sentiment_model() -> PreTrainedModel:
    """An untrained classifier."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(load_tokenizer(None)),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )
    )


def story_model() -> PreTrainedModel:
    """An untrained language model."""
    tokenizer = load_tokenizer(None)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            intermediate_size=256,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    make_model: Callable[[], PreTrainedModel],
    make_examples: Callable[[int, int], list[Example]],
    folder: Path,
    seed: int,
    metrics: Callable[[Any], dict[str, float]] | None = None,
) -> None:
    """Writes the model into the folder, in bfloat16; prints its figures on held-out text."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            prediction_loss_only=metrics is None,
            seed=seed,
            use_cpu=True,
        )
        trainer = Trainer(
            model=make_model(),
            args=arguments,
            train_dataset=make_examples(N_TRAIN, 0),  # type: ignore[arg-type]
            eval_dataset=make_examples(N_TEST, 1),  # type: ignore[arg-type]
            data_collator=collate,  # type: ignore[arg-type]
            compute_metrics=metrics,
        )
        trainer.train()
        print(folder.name, trainer.evaluate())
    trainer.model.to(torch.bfloat16).save_pretrained(folder)


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of right labels."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    train(sentiment_model, sentiment_examples, SENTIMENT_MODEL, seed, accuracy)
    train(story_model, story_examples, STORY_MODEL, seed)
