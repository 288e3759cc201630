"""Supervised fine-tuning, over transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from textgym.agents.completions import Completion, LengthSampler, check_length, collate, complete, read_and_said
from textgym.agents.language_model import ModelLike, check_vocabulary, positions_of
from textgym.agents.policies import source_and_tokenizer
from textgym.agents.seq2seq import encoder_eos_of, policy_class_of
from textgym.episode import Sample
from textgym.errors import DataError
from textgym.rendering import Renderer

__all__ = ["SFT"]


class SFT(Trainer):
    """Teaches a language model to say what it is shown; the loss is on the completions only.

    It is transformers' ``Trainer``: ``train()``, ``evaluate()``, ``save_model(folder)``, checkpoints, reporters and
    several processes are its own.

    Args:
        model: A name, path or model, causal or an encoder-decoder; the built-in one where None.
        args: transformers' ``TrainingArguments``.
        train_dataset: Samples, whose first reference is the completion, as :func:`textgym.load_samples` reads them from
            a file of prompts and completions; or completions as token streams, such as those that
            :func:`textgym.agents.warm_start.demonstrations` plays through an environment.
        eval_dataset: Likewise, for ``evaluate()``.
        tokenizer: The model's; None: the one of its name or path.
        peft_config: Wraps the model in a new adapter; what is saved is then the adapter alone, which needs the base
            model's name or path.
        encoder_eos: Of an encoder-decoder, as in :class:`textgym.agents.Seq2SeqLMPolicy`.
        **kwargs: Of ``Trainer``.

    Raises:
        DataError: A sample has no reference, or is longer than the model reads; or there are none.
        TokenizerError: The tokenizer is not the model's.
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
        encoder_eos: bool = True,
        **kwargs: Any,
    ) -> None:
        source, self.tokenizer = source_and_tokenizer(model, tokenizer)
        loaded: Any = policy_class_of(source).load_model(source, peft_config)
        check_vocabulary(loaded, self.tokenizer)
        self._config = loaded.config
        self._closing_token = encoder_eos_of(loaded) if encoder_eos else None
        super().__init__(
            model=loaded,
            args=args,
            train_dataset=None if train_dataset is None else self._examples(train_dataset),  # type: ignore[arg-type]
            eval_dataset=None if eval_dataset is None else self._examples(eval_dataset),  # type: ignore[arg-type]
            data_collator=collate,
            processing_class=self.tokenizer,
            **kwargs,
        )

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Sequence[Sample | Completion] | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Trainer's; of the samples or completions given, where they are, else of ``eval_dataset``."""
        given: Any = None if eval_dataset is None else self._examples(eval_dataset)
        return super().evaluate(given, *args, **kwargs)

    def _examples(self, dataset: Sequence[Sample | Completion]) -> list[Completion]:
        if not dataset:
            raise DataError("there are no samples to learn from or to evaluate.")
        renderer = Renderer(self.tokenizer)
        return [one for example in dataset for one in self._completions(example, renderer)]

    def _completions(self, example: Sample | Completion, renderer: Renderer) -> list[Completion]:
        """What is learned from one sample: a stream, or of an encoder-decoder its turns."""
        stream = _stream(example, renderer)
        found = read_and_said(stream, self._closing_token) if self._config.is_encoder_decoder else [stream]
        if isinstance(example, Sample):
            found = [check_length(one, positions_of(self._config), example) for one in found]
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        return LengthSampler(self.args, [len(example["input_ids"]) for example in examples])


def _stream(example: Sample | Completion, renderer: Renderer) -> Completion:
    if not isinstance(example, Sample):
        return example
    if not example.references:
        raise DataError(f"sample {example.id!r} has no reference to imitate; drop it, or give one.")
    return complete(renderer, example, example.references[0])
