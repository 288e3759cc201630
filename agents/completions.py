"""Completions as token streams: what supervised and preference training learn from.

Shapes: R rows (completions) of a batch, W tokens of the longest, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from textgym.episode import Sample
from textgym.rendering import Renderer

__all__ = ["IGNORED", "Completion", "collate", "complete", "sequence_log_probs"]

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


def complete(renderer: Renderer, sample: Sample, reply: str) -> Completion:
    """The stream of a reply to a sample's prompt, as a token environment would have it."""
    prompt, said = renderer.prompt_ids(sample), renderer.reply_ids(reply)
    ids = np.array([*prompt, *said], np.int64)
    return Completion(input_ids=ids, labels=np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids))


def collate(completions: Sequence[Completion]) -> dict[str, Tensor]:
    """A batch as transformers' causal language models take it: ``input_ids``, ``attention_mask``, ``labels`` (R, W).

    Padding is on the right; what the agent did not say has the label ``IGNORED``.
    """
    width = max(len(completion["input_ids"]) for completion in completions)
    batch = {name: np.zeros((len(completions), width), np.int64) for name in ("input_ids", "attention_mask")}
    batch["labels"] = np.full((len(completions), width), IGNORED)
    for row, completion in enumerate(completions):
        ids = completion["input_ids"]
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = completion["labels"]
    return {name: torch.as_tensor(array) for name, array in batch.items()}


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
