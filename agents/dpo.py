"""Direct preference optimisation, over transformers' Trainer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from textgym.adapters import switches_off
from textgym.agents.completions import Completion, LengthSampler, collate, complete, sequence_log_probs
from textgym.agents.language_model import ModelLike, adapters_disabled, frozen_copy, load_causal_lm
from textgym.agents.objectives import dpo_loss
from textgym.agents.policies import source_and_tokenizer
from textgym.agents.preferences import Preference
from textgym.errors import ConfigurationError, DataError
from textgym.rendering import Renderer

__all__ = ["DPO"]


class DPO(Trainer):
    """Learns preferences without a reward model: of each pair, the preferred reply becomes likelier than before.

    It is transformers' ``Trainer``: ``train()``, ``evaluate()``, ``save_model(folder)``, checkpoints, reporters and
    several processes are its own. Logged beside the loss: ``rewards/accuracy``, the share of pairs whose implicit
    reward prefers the right reply; ``rewards/margin``, ``rewards/chosen`` and ``rewards/rejected``, their means.

    Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023
    (https://arxiv.org/abs/2305.18290).

    Args:
        model: A name, path or model; the built-in one where None. The reference is the model as it is at the start:
            with a new adapter, that is the same model with the adapter switched off, else a frozen copy (of the adapter
            alone, where the model came with one).
        args: transformers' ``TrainingArguments``.
        train_dataset: Preferences; a ranking of several counts as its neighbouring pairs.
        eval_dataset: Likewise, for ``evaluate()``.
        tokenizer: The model's; None: the one of its name or path.
        beta: How strongly the model is held to the reference.
        peft_config: Wraps the model in a new adapter; what is saved is then the adapter alone, which needs the base
            model's name or path.
        **kwargs: Of ``Trainer``.

    Raises:
        ConfigurationError: ``beta`` is not positive.
        DataError: A preference is a rating, which prefers nothing.
    """

    def __init__(
        self,
        model: ModelLike | nn.Module | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Sequence[Preference] | None = None,
        eval_dataset: Sequence[Preference] | None = None,
        *,
        tokenizer: Any = None,
        beta: float = 0.1,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if not beta > 0:
            raise ConfigurationError(f"beta={beta}; it is positive.")
        source, self.tokenizer = source_and_tokenizer(model, tokenizer)
        loaded: Any = load_causal_lm(source, peft_config)
        self.beta = beta
        starts_at_base = peft_config is not None and switches_off(loaded)
        self.reference = None if starts_at_base else frozen_copy(loaded)
        renderer = Renderer(self.tokenizer)
        self._figures: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=loaded,
            args=args,
            train_dataset=None if train_dataset is None else _pairs(train_dataset, renderer),  # type: ignore[arg-type]
            eval_dataset=None if eval_dataset is None else _pairs(eval_dataset, renderer),  # type: ignore[arg-type]
            data_collator=_collate_pairs,
            processing_class=self.tokenizer,
            **kwargs,
        )
        self.can_return_loss = True  # evaluate() then reports the loss
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        pairs: Any = self.train_dataset if train_dataset is None else train_dataset
        return LengthSampler(self.args, [max(len(completion["input_ids"]) for completion in pair) for pair in pairs])

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The mean loss of a batch of pairs; the preferred replies are the first half of its rows."""
        policy = self._log_probs(model, inputs)
        with torch.no_grad():
            if self.reference is None:
                with adapters_disabled(self.accelerator.unwrap_model(model)) as base:
                    reference = self._log_probs(base, inputs)
            else:
                with self.accelerator.autocast():  # which Trainer puts around the model itself
                    reference = self._log_probs(self.reference.to(policy.device), inputs)
        (won, lost), (reference_won, reference_lost) = policy.chunk(2), reference.chunk(2)
        loss, margins = dpo_loss(won, lost, reference_won, reference_lost, self.beta)
        chosen, rejected = (self.beta * (policy - reference).detach()).chunk(2)
        figures = {
            "accuracy": (margins > 0).float(),
            "margin": margins.detach(),
            "chosen": chosen,
            "rejected": rejected,
        }
        for name, values in figures.items():
            self._figures[f"{'' if model.training else 'eval_'}rewards/{name}"].append(values.mean().item())
        return (loss, {"margins": margins}) if return_outputs else loss

    @staticmethod
    def _log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        return sequence_log_probs(logits, inputs["labels"])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with the means of the implicit rewards since the last time."""
        is_evaluation = any(name.startswith("eval_") for name in logs)
        for name in [name for name in self._figures if name.startswith("eval_") == is_evaluation]:
            values = self._figures.pop(name)
            logs[name] = sum(values) / len(values)
        super().log(logs, *args, **kwargs)


def _pairs(preferences: Sequence[Preference], renderer: Renderer) -> list[tuple[Completion, Completion]]:
    pairs = []
    for preference in preferences:
        if preference.rating is not None:
            raise DataError(
                f"sample {preference.sample.id!r} is a rating, which prefers nothing; DPO learns from pairs and "
                "rankings."
            )
        streams = [complete(renderer, preference.sample, reply) for reply in preference.replies]
        pairs += list(pairwise(streams))
    return pairs


def _collate_pairs(pairs: Sequence[tuple[Completion, Completion]]) -> dict[str, Tensor]:
    return collate([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])
