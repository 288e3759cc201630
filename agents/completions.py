"""Completions as token streams: what supervised and preference training learn from.

Shapes: R rows (completions) of a batch, W tokens of the longest, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from textgym.episode import Sample
from textgym.errors import DataError
from textgym.rendering import Renderer

__all__ = [
    "IGNORED",
    "Completion",
    "LengthSampler",
    "check_length",
    "collate",
    "complete",
    "padded",
    "read_and_said",
    "sequence_log_probs",
]

IGNORED = -100
"""The label of a token that is not learned, as in transformers."""


class Completion(TypedDict):
    """The token stream of an episode in which the agent said something; an item of a data set for ``Trainer``.

    Args:
        input_ids: ``(length,)`` int64.
        labels: ``(length,)`` int64, the tokens that it said, ``IGNORED`` elsewhere.
    """

    input_ids: np.ndarray
    labels: np.ndarray


class LengthSampler(LengthGroupedSampler):
    """Examples of similar length together, so that little is padded, in an order of the seed's and epoch's own.

    So a training that goes on in the middle of an epoch goes on in the same order, whatever else is drawn.
    """

    def __init__(self, args: TrainingArguments, lengths: list[int]) -> None:
        super().__init__(args.train_batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = args.seed if args.data_seed is None else args.data_seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is next; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        self.generator.manual_seed(int(state[0]))
        self.epoch += 1
        return super().__iter__()


def complete(renderer: Renderer, sample: Sample, reply: str) -> Completion:
    """The stream of a reply to a sample's prompt, as a token environment would have it."""
    prompt, said = renderer.prompt_ids(sample), renderer.reply_ids(reply)
    ids = np.array([*prompt, *said], np.int64)
    return Completion(input_ids=ids, labels=np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids))


def check_length(completion: Completion, limit: int | None, sample: Sample) -> Completion:
    """The completion, if a model with so many positions (None: no limit) can read it.

    Raises:
        DataError: It cannot.
    """
    length = max(len(completion["input_ids"]), len(completion["labels"]))
    if limit is not None and length > limit:
        raise DataError(
            f"sample {sample.id!r} has {length} tokens with its reply, and the model has positions for {limit}; "
            "shorten it, or leave it out."
        )
    return completion


def read_and_said(completion: Completion, closing_token: int | None) -> list[Completion]:
    """A stream's turns as an encoder-decoder learns them: what stands before each, as its ids, and what it says.

    Args:
        completion: The stream.
        closing_token: Ends what is read; None: nothing does.
    """
    ids, said = completion["input_ids"], completion["labels"] != IGNORED
    turns = np.flatnonzero(np.diff(said, prepend=False, append=False)).reshape(-1, 2)
    closing = [] if closing_token is None else [closing_token]
    return [Completion(input_ids=np.array([*ids[:a], *closing], np.int64), labels=ids[a:b]) for a, b in turns]


def collate(completions: Sequence[Completion]) -> dict[str, Tensor]:
    """A batch as transformers' language models take it: ``input_ids``, ``attention_mask`` (R, W) and ``labels``.

    Padding is on the right; what the agent did not say has the label ``IGNORED``. The labels are (R, W) too, or, of an
    encoder-decoder, as wide as the longest reply.
    """
    return {
        "input_ids": padded([completion["input_ids"] for completion in completions], 0),
        "attention_mask": padded([np.ones_like(completion["input_ids"]) for completion in completions], 0),
        "labels": padded([completion["labels"] for completion in completions], IGNORED),
    }


def padded(rows: Sequence[Sequence[int] | np.ndarray], padding: int) -> Tensor:
    """Rows of ids as one array (R, W) int64, padded on the right."""
    array = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for row, values in enumerate(rows):
        array[row, : len(values)] = values
    return torch.as_tensor(array)


def sequence_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each row's labelled tokens together, (R,) float32.

    Args:
        logits: (R, W, V); those at a token are about the next one.
        labels: (R, W) int64, ``IGNORED`` at tokens that do not count.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    chosen = logits[:, :-1][wanted].float()
    log_probs = chosen.gather(-1, targets[wanted][:, None]).squeeze(-1) - chosen.logsumexp(-1)
    rows = wanted.nonzero()[:, 0]
    return torch.zeros(len(labels), device=logits.device).index_add(0, rows, log_probs)
