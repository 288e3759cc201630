"""Supervised fine-tuning, over transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from textgym.agents.completions import Completion, collate, complete
from textgym.agents.language_model import ModelLike, load_causal_lm
from textgym.agents.policies import source_and_tokenizer
from textgym.episode import Sample
from textgym.errors import DataError
from textgym.rendering import Renderer

__all__ = ["SFT"]


class SFT(Trainer):
    """Teaches a language model to say what it is shown; the loss is on the completions only.

    It is transformers' ``Trainer``: ``train()``, ``evaluate()``, ``save_model(folder)``, checkpoints, reporters and
    several processes are its own.

    Args:
        model: A name, path or model; the built-in one where None.
        args: transformers' ``TrainingArguments``.
        train_dataset: Samples, whose first reference is the completion, as :func:`textgym.load_samples` reads them from
            a file of prompts and completions; or completions as token streams, such as those that
            :func:`textgym.agents.warm_start.demonstrations` plays through an environment.
        eval_dataset: Likewise, for ``evaluate()``.
        tokenizer: The model's; None: the one of its name or path.
        peft_config: Wraps the model in a new adapter; what is saved is then the adapter alone, which needs the base
            model's name or path.
        **kwargs: Of ``Trainer``.

    Raises:
        DataError: A sample has no reference.
    """

    def __init__(
        self,
        model: ModelLike | nn.Module | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Sequence[Sample | Completion] | None = None,
        eval_dataset: Sequence[Sample | Completion] | None = None,
        *,
        tokenizer: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        source, self.tokenizer = source_and_tokenizer(model, tokenizer)
        renderer = Renderer(self.tokenizer)
        super().__init__(
            model=load_causal_lm(source, peft_config),
            args=args,
            train_dataset=_streams(train_dataset, renderer),  # type: ignore[arg-type]
            eval_dataset=_streams(eval_dataset, renderer),  # type: ignore[arg-type]
            data_collator=collate,
            processing_class=self.tokenizer,
            **kwargs,
        )


def _streams(examples: Sequence[Sample | Completion] | None, renderer: Renderer) -> list[Completion] | None:
    return None if examples is None else [_stream(example, renderer) for example in examples]


def _stream(example: Sample | Completion, renderer: Renderer) -> Completion:
    if not isinstance(example, Sample):
        return example
    if not example.references:
        raise DataError(f"sample {example.id!r} has no reference to imitate; drop it, or give one.")
    return complete(renderer, example, example.references[0])
