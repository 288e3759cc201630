"""Builds the two small models that reward tasks: the sentiment of a review, the fluency of a story.

Run:
    python scripts/build_reward_models.py          # writes envs/data/{sentiment,stories}, in minutes on a core

Both are trained with transformers' Trainer on text that is made here, read the built-in model's tokens, and are
deterministic for a seed (on the same machine and the same version of torch).

The classifier reads the reviews of two tasks, whole or a sentence of one, and, lest it know those alone, clauses and
fragments made of the words and templates of ``sentiment_phrases.json``. There ``good`` and ``bad`` hold what praises
and blames, ``neutral`` the rest; a word that stands there several times is drawn more often. A third class,
``unclear``, holds the same words in disorder or over and over, lest text that is none be rewarded. Smoothed labels
keep the probabilities away from 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import re
import string
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

from textgym.envs.classification import builtin_reviews
from textgym.envs.creative_writing import STORY_MODEL, story
from textgym.envs.invention import Chance
from textgym.envs.knowledge_qa import builtin_facts, builtin_relations
from textgym.envs.sentiment_continuation import SENTIMENT_MODEL, review
from textgym.rendering import load_tokenizer

LABELS = ("negative", "positive", "unclear")
PHRASES = json.loads((Path(__file__).parent / "sentiment_phrases.json").read_text(encoding="utf-8"))
N_REVIEWS, N_STORIES, N_TEST = 160_000, 20_000, 2_000
MAX_TOKENS = 128  # of a review
SMOOTHING = 0.09  # a third of it is what the classifier leaves to each of the other labels
IGNORED = -100  # the label that transformers' losses leave out
Example = dict[str, torch.Tensor]
Maker = Callable[[Chance], tuple[str, bool | None]]


def sentiment_texts(makers: Sequence[Maker], n: int, seed: int) -> list[tuple[str, int]]:
    """Texts of these makers and the indices of their labels, a quarter of them unclear."""
    chance = Chance((2026, 11, 3, seed))
    found = []
    for _ in range(n):
        text, positive = chance.one_of(makers)(chance)
        if chance.happens(0.25):
            found.append((disordered(text, chance), LABELS.index("unclear")))
        else:  # a text that does not judge, or not clearly, is as often called the one as the other
            found.append((text, int(chance.happens(0.5) if positive is None else positive)))
    return found


def task_review(chance: Chance) -> tuple[str, bool]:
    """A continuation of the task, whole or a sentence of it, and whether it is favourable."""
    _, text, positive = review(chance)
    sentences = re.split(r"(?<=\.) ", text)
    if len(sentences) > 1 and chance.happens(0.3):
        text = sentences[-1] if chance.happens(0.5) else sentences[0]
    return text, positive


def classification_review(chance: Chance) -> tuple[str, bool | None]:
    """A review of the classification task, and whether it is favourable; None for a mixed one."""
    sample = chance.one_of(builtin_reviews())
    text = sample.prompt.partition("\n")[0].removeprefix("Review: ")
    return text, {"positive": True, "negative": False}.get(sample.references[0])


def phrases_review(chance: Chance) -> tuple[str, bool | None]:
    """Clauses of ``sentiment_phrases.json``, written now one way and now another; now and then without a judgement."""
    positive = chance.happens(0.5)
    if chance.happens(0.12):
        text = phrase(chance, chance.one_of(("bare", "bare", "mixed")), positive)
        return written(text, chance), None
    return written(phrase(chance, "text", positive), chance), positive


def phrase(chance: Chance, kind: str, positive: bool) -> str:
    """A phrase of some kind: one of its forms, with a phrase in place of each ``{kind}`` and ``{other_kind}`` in it."""
    if kind == "name":
        return chance.one_of(builtin_facts()).subject
    if kind == "fact":
        return a_fact(chance)
    forms = PHRASES["good" if positive else "bad"].get(kind) or PHRASES["neutral"][kind]
    return re.sub(
        r"\{(other_)?(\w+)\}", lambda slot: phrase(chance, slot[2], positive != bool(slot[1])), chance.one_of(forms)
    )


def a_fact(chance: Chance) -> str:
    """A statement that does not judge, without its full stop: of a story or of knowledge."""
    if chance.happens(0.5):
        return story(chance).text.partition(". ")[0]
    fact = chance.one_of(builtin_facts())
    statement = builtin_relations()[fact.relation].statement
    return statement.format(subject=fact.subject, value=fact.values[0]).removesuffix(".")


def written(text: str, chance: Chance) -> str:
    """The text with capitals or without, with its full stop or without, with blanks around punctuation or without."""
    text = re.sub(r"([^aeiou])ys\b", r"\1ies", re.sub(r"\ba (?=[aeiou])", "an ", text))
    if chance.happens(0.2):
        text = text.removesuffix(".")
    if chance.happens(0.5):
        return re.sub(r"([.,;:!])(?=\s|$)", r" \1", text.lower()) if chance.happens(0.6) else text.lower()
    return re.sub(r"(^|[.!] )(\w)", lambda start: start[1] + start[2].upper(), text)


def disordered(text: str, chance: Chance) -> str:
    """The words in another order, or a few of them over and over; or adjectives without a sentence, or letters."""
    if chance.happens(0.1):
        positive = chance.happens(0.5)
        return " ".join(phrase(chance, "adjective", positive) for _ in range(chance.between(4, 10)))
    if chance.happens(0.05):
        letters = [chance.one_of(string.ascii_lowercase + " ") for _ in range(chance.between(3, 80))]
        return "".join(letters)
    words = text.split()
    if len(words) > 4 and chance.happens(0.5):
        return " ".join(chance.some_of(words, len(words)))
    start = chance.between(0, len(words) - 1)
    return " ".join(words[start : start + chance.between(1, 3)] * chance.between(3, 7))


def sentiment_examples(makers: Sequence[Maker], n: int, seed: int) -> list[Example]:
    """Ids (T,) and a label ()."""
    tokenizer = load_tokenizer(None)
    return [
        {"input_ids": torch.tensor(tokenizer(text)["input_ids"][:MAX_TOKENS]), "labels": torch.tensor(label)}
        for text, label in sentiment_texts(makers, n, seed)
    ]


def story_examples(n: int, seed: int) -> list[Example]:
    """Ids (T,) of an end token, a story and an end token; they are the labels too."""
    tokenizer = load_tokenizer(None)
    chance = Chance((2026, 11, 4, seed))
    end = tokenizer.eos_token_id
    rows = [torch.tensor([end, *tokenizer(" " + story(chance).text)["input_ids"], end]) for _ in range(n)]
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
            max_position_embeddings=MAX_TOKENS,
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
            problem_type="single_label_classification",
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
    examples: list[Example],
    held_out: list[Example],
    folder: Path,
    seed: int,
    metrics: Callable[[Any], dict[str, float]] | None = None,
    epochs: int = 1,
    smoothing: float = 0.0,
) -> None:
    """Writes the model into the folder, in bfloat16; prints its figures on held-out text."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            label_smoothing_factor=smoothing,
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
            train_dataset=examples,  # type: ignore[arg-type]
            eval_dataset=held_out,  # type: ignore[arg-type]
            data_collator=collate,  # type: ignore[arg-type]
            compute_metrics=metrics,
        )
        trainer.train()
        print(folder.name, trainer.evaluate())
    trainer.model.to(torch.bfloat16).save_pretrained(folder)


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of right labels."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


MAKERS = (task_review, task_review, classification_review, *(phrases_review,) * 5)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    train(
        sentiment_model,
        sentiment_examples(MAKERS, N_REVIEWS, 0),
        sentiment_examples([task_review], N_TEST, 1),
        SENTIMENT_MODEL,
        seed,
        accuracy,
        smoothing=SMOOTHING,
    )
    train(story_model, story_examples(N_STORIES, 0), story_examples(N_TEST, 1), STORY_MODEL, seed, epochs=4)
