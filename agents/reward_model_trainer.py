"""A reward model trained on preferences, over transformers' Trainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from textgym.adapters import base_of_folder, is_adapted, put_adapter_on
from textgym.agents.completions import LengthSampler, padded
from textgym.agents.language_model import check_vocabulary, load_causal_lm
from textgym.agents.objectives import plackett_luce_loss
from textgym.agents.policies import source_and_tokenizer
from textgym.agents.preferences import Preference
from textgym.errors import ConfigurationError, DataError, TokenizerError
from textgym.rewards import RewardModel
from textgym.rewards.models import Template

__all__ = ["RewardModelTrainer", "calibration_error", "preference_report"]

N_BINS = 10
COMPARABLE = {"ranking": {"ranking"}, "binary": {"binary"}, "regression": {"binary", "regression"}}
"""What a model that has learned from one kind of preferences can be evaluated on."""


class RewardModelTrainer(Trainer):
    """Trains a model to give the better reply the higher score.

    It is transformers' ``Trainer``: ``train()``, ``evaluate()``, ``save_model(folder)``, checkpoints, reporters and
    several processes are its own. Rankings, pairs among them, are learned by Plackett and Luce's likelihood (of a pair
    Bradley and Terry's); ratings that are all 0 or 1 by their cross entropy, other ratings by their squared error.
    ``evaluate()``, also of other preferences, reports what :func:`preference_report` says.

    Args:
        model: A name, path or language model, to which a new head of one score is given; the built-in one where None.
            A sequence-classification model of one class is used as it is; a language model's adapter is merged.
        args: transformers' ``TrainingArguments``.
        train_dataset: Preferences, all of one kind.
        eval_dataset: Likewise, for ``evaluate()``.
        tokenizer: The model's; None: the one of its name or path.
        template: As in :class:`textgym.rewards.RewardModel`.
        max_length: Likewise.
        peft_config: Wraps the model in a new adapter, beside which the head is trained; what is saved is then these
            alone, and needs the base model's name or path.
        **kwargs: Of ``Trainer``.

    Raises:
        DataError: The preferences are of several kinds, or one of them cannot be read.
        ConfigurationError: The model has several classes, or an adapter already.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Sequence[Preference] | None = None,
        eval_dataset: Sequence[Preference] | None = None,
        *,
        tokenizer: Any = None,
        template: Template | None = None,
        max_length: int | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        source, self.tokenizer = source_and_tokenizer(model, tokenizer)
        preferences = [*(train_dataset or ()), *(eval_dataset or ())]
        self.kind = _kind(preferences)
        self._most_replies = max((len(preference.replies) for preference in preferences), default=1)
        self.reward = RewardModel(
            _classifier(source, self.tokenizer), self.tokenizer, template, max_length=max_length, truncate=True
        )
        model_to_train: nn.Module = self.reward.model
        if peft_config is not None:
            model_to_train = put_adapter_on(self.reward.model, _with_head(peft_config, self.reward.model))
        super().__init__(
            model=model_to_train,
            args=args,
            train_dataset=None if train_dataset is None else self._examples(train_dataset),  # type: ignore[arg-type]
            eval_dataset=None if eval_dataset is None else self._examples(eval_dataset),  # type: ignore[arg-type]
            data_collator=self._collate,
            processing_class=_with_padding(self.tokenizer, self.reward.model.config.pad_token_id),
            compute_metrics=self._report,
            **kwargs,
        )
        self.label_names = ["ratings"]
        self.model_accepts_loss_kwargs = False  # the loss is a mean over preferences

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Sequence[Preference] | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Trainer's; of the preferences given, where they are, else of ``eval_dataset``.

        Raises:
            DataError: They are rankings and the model has learned from ratings, or the other way round.
        """
        if eval_dataset is None:
            return super().evaluate(None, *args, **kwargs)
        if _kind(eval_dataset) not in COMPARABLE[self.kind]:
            raise DataError(f"the model has learned from preferences of the kind {self.kind!r}; give some like them.")
        self._most_replies = max(self._most_replies, *(len(preference.replies) for preference in eval_dataset))
        return super().evaluate(self._examples(eval_dataset), *args, **kwargs)  # type: ignore[arg-type]

    def _examples(self, preferences: Sequence[Preference]) -> list[tuple[list[list[int]], float]]:
        """The texts' ids, as the reward model would read them, and the rating (NaN where there is none)."""
        if not preferences:
            raise DataError("there are no preferences to learn from or to evaluate.")
        return [
            ([self._ids(preference, i) for i in range(len(preference.replies))],
             float("nan") if preference.rating is None else preference.rating)
            for preference in preferences
        ]  # fmt: skip

    def _ids(self, preference: Preference, i: int) -> list[int]:
        ids = self.reward.ids(preference.episodes()[i])
        if not isinstance(ids, list):
            raise DataError(f"sample {preference.sample.id!r}: {ids.status}")
        return ids

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        return LengthSampler(self.args, [max(map(len, texts)) for texts, _ in examples])

    def _collate(self, examples: Sequence[tuple[list[list[int]], float]]) -> dict[str, Tensor]:
        """All texts of the batch in one array; ``places`` (B, K) says which of them are each preference's, -1 none."""
        texts = [ids for all_ids, _ in examples for ids in all_ids]
        places, start = np.full((len(examples), self._most_replies), -1), 0
        for row, (all_ids, _) in enumerate(examples):
            places[row, : len(all_ids)] = np.arange(start, start + len(all_ids))
            start += len(all_ids)
        return {
            "input_ids": padded(texts, self.reward.model.config.pad_token_id),
            "attention_mask": padded([[1] * len(ids) for ids in texts], 0),
            "places": torch.as_tensor(places),
            "ratings": torch.tensor([rating for _, rating in examples], dtype=torch.float32),
        }

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The mean loss of a batch of preferences; their scores (B, K), minus infinity where there is none."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].float()
        places, ratings = inputs["places"], inputs["ratings"]
        scores = logits[places.clamp_min(0)].masked_fill(places < 0, -torch.inf)
        if self.kind == "ranking":
            loss = plackett_luce_loss(scores)
        elif self.kind == "binary":
            loss = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], ratings)
        else:
            loss = nn.functional.mse_loss(scores[:, 0], ratings)
        return (loss, {"scores": scores}) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; beside an adapter the model's configuration, which says that there is one score."""
        super().save_model(output_dir, _internal_call)
        if is_adapted(self.model) and self.args.should_save:
            config = copy.deepcopy(self.reward.model.config)
            config.architectures = [type(self.reward.model).__name__]
            config.save_pretrained(output_dir or str(self.args.output_dir))

    def _report(self, prediction: Any) -> dict[str, float]:
        return preference_report(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), self.kind)


def preference_report(scores: np.ndarray, ratings: np.ndarray, kind: str) -> dict[str, float]:
    """How well scores agree with preferences.

    Args:
        scores: (B, K), the preferred first; minus infinity where there is none.
        ratings: (B,).
        kind: ``"ranking"``, ``"binary"`` or ``"regression"``.

    Returns:
        ``accuracy``: the share of neighbouring pairs, or of ratings of 0 or 1, told rightly (a tie is half right).
        ``calibration_error``: between the probability that the model gives to the better reply, or to 1, and how often
        it is right. ``margin/q10`` to ``margin/q90``: quantiles of the margins of pairs, or of the scores, those of
        ratings of 0 negated. For regression ``mean_squared_error`` and ``correlation``.
    """
    if kind == "regression":
        error = float(np.mean((scores[:, 0] - ratings) ** 2))
        return {"mean_squared_error": error, "correlation": float(np.corrcoef(scores[:, 0], ratings)[0, 1])}
    if kind == "binary":
        margins = np.where(ratings > 0.5, scores[:, 0], -scores[:, 0])
        probabilities, truths = 1 / (1 + np.exp(-scores[:, 0])), ratings > 0.5
    else:
        better, worse = scores[:, :-1], scores[:, 1:]
        margins = better[np.isfinite(worse)] - worse[np.isfinite(worse)]
        probabilities = 1 / (1 + np.exp(-np.abs(margins)))  # of the reply that the model prefers
        truths = margins > 0
    quantiles = {f"margin/q{q}": float(np.quantile(margins, q / 100)) for q in (10, 50, 90)}
    accuracy = float(np.mean(np.where(margins == 0, 0.5, margins > 0)))
    return {"accuracy": accuracy, "calibration_error": calibration_error(probabilities, truths), **quantiles}


def calibration_error(probabilities: np.ndarray, truths: np.ndarray) -> float:
    """The expected calibration error: how far probabilities are from the shares that come true, over ten bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3 (https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: (N,) from 0 to 1.
        truths: (N,) bool.
    """
    bins = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    gaps = [abs(probabilities[bins == b].sum() - truths[bins == b].sum()) for b in range(N_BINS)]
    return float(sum(gaps) / len(probabilities))


def _kind(preferences: Sequence[Preference]) -> str:
    ratings = [preference.rating for preference in preferences]
    given = [rating for rating in ratings if rating is not None]
    if given and len(given) < len(ratings):
        raise DataError(f"{len(given)} of {len(ratings)} preferences are ratings, the others rankings; give one kind.")
    if not given:
        return "ranking"
    return "binary" if set(given) <= {0.0, 1.0} else "regression"


def _with_head(peft_config: Any, classifier: PreTrainedModel) -> Any:
    """The adapter's configuration with the classifier's head among what is trained and saved whole."""
    own = copy.deepcopy(peft_config)
    trunk = classifier.base_model
    heads = {name for name, child in classifier.named_children() if child is not trunk and list(child.parameters())}
    own.task_type = "SEQ_CLS"
    own.modules_to_save = sorted({*(own.modules_to_save or ()), *heads})
    return own


def _merged(adapted: Any) -> PreTrainedModel:
    """A language model with an adapter as one model, which is on no disk."""
    merged = copy.deepcopy(adapted).merge_and_unload()
    merged.config.name_or_path = ""
    return merged


def _with_padding(tokenizer: Any, padding: int) -> Any:
    """A tokenizer with this padding token if it has none: Trainer aligns the model's configuration with it."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def _classifier(source: str | PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    """The model with a head of one score."""
    if isinstance(source, str) and base_of_folder(source) is not None:
        source = _merged(load_causal_lm(source))
    elif is_adapted(source):
        source = _merged(source)
    if isinstance(source, str):
        classifier = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    elif source.get_output_embeddings() is None:
        classifier = source
    else:
        config = copy.deepcopy(source.config)
        config.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(config)
        classifier.base_model.load_state_dict(source.base_model.state_dict())
    if classifier.config.num_labels != 1:
        raise ConfigurationError(f"a reward model has one score, not {classifier.config.num_labels} classes.")
    if classifier.config.pad_token_id is None:
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if padding is None:  # transformers' classifiers pass over it at a text's end
            raise TokenizerError("the tokenizer has no padding token, nor an end token in its place; set pad_token.")
        classifier.config.pad_token_id = padding
    check_vocabulary(classifier, tokenizer)
    return classifier
