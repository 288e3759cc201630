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
from textgym.agents.completions import Completion, LengthSampler, check_length, collate, complete, sequence_log_probs
from textgym.agents.language_model import (
    ModelLike,
    adapters_disabled,
    check_vocabulary,
    frozen_copy,
    load_causal_lm,
    positions_of,
)
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
        DataError: A preference is a single reply, or longer than the model reads; or there are none.
        TokenizerError: The tokenizer is not the model's.
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
        check_vocabulary(loaded, self.tokenizer)
        self.beta = beta
        starts_at_base = peft_config is not None and switches_off(loaded)
        self.reference = None if starts_at_base else frozen_copy(loaded)
        self._positions = positions_of(loaded.config)
        self._figures: dict[bool, dict[str, list[float]]] = {True: defaultdict(list), False: defaultdict(list)}
        self._evaluation = "eval"
        super().__init__(
            model=loaded,
            args=args,
            train_dataset=None if train_dataset is None else self._pairs(train_dataset),  # type: ignore[arg-type]
            eval_dataset=None if eval_dataset is None else self._pairs(eval_dataset),  # type: ignore[arg-type]
            data_collator=_collate_pairs,
            processing_class=self.tokenizer,
            **kwargs,
        )
        self.can_return_loss = True  # evaluate() then reports the loss
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Sequence[Preference] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Trainer's; of the preferences given, where they are, else of ``eval_dataset``."""
        self._evaluation = metric_key_prefix
        self._figures[False].clear()
        given: Any = None if eval_dataset is None else self._pairs(eval_dataset)
        return super().evaluate(given, ignore_keys, metric_key_prefix)

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
            self._figures[model.training][f"rewards/{name}"].append(values.mean().item())
        return (loss, {"margins": margins}) if return_outputs else loss

    @staticmethod
    def _log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        return sequence_log_probs(logits, inputs["labels"])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with the means of the implicit rewards since the last time."""
        is_evaluation = any(name.startswith(f"{self._evaluation}_") for name in logs)
        figures = self._figures[not is_evaluation]
        for name, values in figures.items():
            logs[f"{self._evaluation}_{name}" if is_evaluation else name] = sum(values) / len(values)
        figures.clear()
        super().log(logs, *args, **kwargs)

    def _pairs(self, preferences: Sequence[Preference]) -> list[tuple[Completion, Completion]]:
        if not preferences:
            raise DataError("there are no preferences to learn from or to evaluate.")
        renderer, pairs = Renderer(self.tokenizer), []
        for preference in preferences:
            sample = preference.sample
            if preference.rating is not None or len(preference.replies) < 2:
                raise DataError(
                    f"sample {sample.id!r} is a single reply, which is preferred to nothing; DPO learns from pairs and "
                    "rankings."
                )
            streams = [complete(renderer, sample, reply) for reply in preference.replies]
            pairs += list(pairwise(check_length(stream, self._positions, sample) for stream in streams))
        return pairs


def _collate_pairs(pairs: Sequence[tuple[Completion, Completion]]) -> dict[str, Tensor]:
    return collate([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])
