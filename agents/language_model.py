"""Loading a transformers language model and reaching its parts, whatever its architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast

from textgym.adapters import (
    AdaptedModel,
    base_of_folder,
    blueprint,
    fixed_weights,
    is_adapted,
    load_adapter,
    portable_config,
    put_adapter_on,
)
from textgym.errors import ConfigurationError, ModelError, TokenizerError
from textgym.rewards.loading import load_pretrained

__all__ = [
    "CausalLM",
    "ModelLike",
    "adapters_disabled",
    "decoder_head_logits",
    "frozen_copy",
    "head_logits",
    "is_encoder_decoder",
    "load_causal_lm",
    "load_seq2seq_lm",
    "load_value_trunk",
    "plain_head",
    "portable_model",
    "trunk_copy",
    "trunk_of",
    "unwrapped",
]

ModelLike = str | Path | PretrainedConfig | PreTrainedModel | AdaptedModel
CausalLM = nn.Module
"""A ``PreTrainedModel`` with a language-model head, or a ``peft.PeftModel`` around one."""


class _Kind(NamedTuple):
    """A kind of language model, as transformers tells them apart."""

    is_encoder_decoder: bool
    name: str
    auto_class: Any
    example: str  # of a class
    policy: str


CAUSAL = _Kind(False, "a causal language model", AutoModelForCausalLM, "...ForCausalLM", "CausalLMPolicy")
SEQ2SEQ = _Kind(True, "an encoder-decoder", AutoModelForSeq2SeqLM, "...ForConditionalGeneration", "Seq2SeqLMPolicy")


def load_causal_lm(model: ModelLike | nn.Module, peft_config: Any = None) -> CausalLM:
    """The model itself, or the one of that name, path or configuration.

    Args:
        model: A PreTrainedModel (or PeftModel) is used in place. A name's or path's weights are loaded in float32, from
            safetensors, or from pickles with ``weights_only``; those of a configuration are random, in its own
            precision. A folder with an adapter gives the base model that it names, with that adapter.
        peft_config: Wraps it in a new adapter.

    Raises:
        ModelError: There is no such model, or it is no causal language model.
        ConfigurationError: It has an adapter already, or ``peft_config`` is none for the model's layers.
    """
    return _load(model, CAUSAL, peft_config)


def load_seq2seq_lm(model: ModelLike | nn.Module, peft_config: Any = None) -> nn.Module:
    """As :func:`load_causal_lm`, an encoder-decoder with a language-model head."""
    return _load(model, SEQ2SEQ, peft_config)


def is_encoder_decoder(model: ModelLike | nn.Module) -> bool:
    """Whether a model, or the one of this name, path or configuration, is an encoder-decoder.

    Raises:
        ModelError: There is none of this name.
    """
    return _says_encoder_decoder(_config_of(model))


def _config_of(model: ModelLike | nn.Module) -> PretrainedConfig | None:
    """An adapter's is its base model's."""
    if isinstance(model, AdaptedModel):
        return _config_of(model.base)
    if isinstance(model, PretrainedConfig):
        return model
    if not isinstance(model, (str, Path)):
        return getattr(unwrapped(model), "config", None)
    base = base_of_folder(Path(model).expanduser())
    if base is None:
        return _config(str(model))
    try:
        return _config(base)
    except ModelError as error:
        raise ModelError(
            f"{str(model)!r} holds an adapter whose base model cannot be had: {error} If it lies elsewhere now, write "
            "that into adapter_config.json as base_model_name_or_path."
        ) from error


def _says_encoder_decoder(config: PretrainedConfig | None) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _load(model: ModelLike | nn.Module, kind: _Kind, peft_config: Any) -> nn.Module:
    config = _config_of(model)
    if config is not None and _says_encoder_decoder(config) != kind.is_encoder_decoder:
        other = CAUSAL if kind is SEQ2SEQ else SEQ2SEQ
        name = model if isinstance(model, (str, Path)) else type(model).__name__
        raise ModelError(f"{name} is {other.name} and not {kind.name}; the policy for it is {other.policy!r}.")
    if isinstance(model, AdaptedModel):
        rebuilt = _load(model.base, kind, model.adapter)
        model.check(rebuilt)
        return rebuilt
    if isinstance(model, PretrainedConfig):
        loaded: nn.Module = kind.auto_class.from_config(model)
    elif isinstance(model, (str, Path)):
        loaded = _from_name(str(model), config, kind)
    elif isinstance(model, nn.Module) and hasattr(model, "get_output_embeddings"):
        loaded = model
    else:
        raise ModelError(
            f"a model is a name, a path, a configuration or a PreTrainedModel, not {type(model).__name__}."
        )
    if getattr(unwrapped(loaded), "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{type(loaded).__name__} has no language-model head; give a model {kind.example}.")
    if peft_config is not None:
        loaded = put_adapter_on(loaded, peft_config, str(model) if isinstance(model, (str, Path)) else None)
    _switch_dropout_off(loaded)
    _use_fused_gelu(loaded)
    return loaded


def _from_name(name: str, config: PretrainedConfig | None, kind: _Kind) -> nn.Module:
    """The model of a name or path; with its adapter, where there is one in the folder."""
    base = base_of_folder(Path(name).expanduser())
    if base is None:
        return _from_pretrained(name, config, kind)
    return load_adapter(_from_pretrained(base, config, kind), Path(name).expanduser())


def _from_pretrained(name: str, config: PretrainedConfig | None, kind: _Kind) -> PreTrainedModel:
    try:
        return kind.auto_class.from_pretrained(_source(name), config=config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error


def _config(name: str) -> PretrainedConfig:
    looks_like_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        raise ModelError(
            f"there is no model folder {name!r}; give a folder with config.json and weights, or a hub name."
        )
    try:
        return AutoConfig.from_pretrained(_source(name))
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error


def _source(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def _not_loaded(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load the model {name!r}: it is no local folder with a language model, and no such model could be had "
        f"from the hub ({str(error).splitlines()[0] if str(error) else type(error).__name__})."
    )


def load_value_trunk(
    model: str | Path | PretrainedConfig, load_model: Callable[..., nn.Module]
) -> tuple[PreTrainedModel, nn.Linear | None]:
    """The trunk of a language model or of a reward model, and the reward model's score head; adapters are merged.

    Raises:
        ModelError: There is no such model, or it is neither a causal language model nor a decoder with a score.
        ConfigurationError: It has several classes.
    """
    if isinstance(model, PretrainedConfig) or not _is_classifier(str(model)):
        loaded: Any = load_model(model)
        loaded = loaded.merge_and_unload() if is_adapted(loaded) else loaded
        return trunk_of(loaded).requires_grad_(True), None
    classifier: Any = load_pretrained("AutoModelForSequenceClassification", str(model), device="cpu")
    if classifier.config.num_labels != 1:
        raise ConfigurationError(
            f"the value model {str(model)!r} has {classifier.config.num_labels} classes; give a reward model with one "
            "score, as RewardModelTrainer trains it."
        )
    score = getattr(classifier, "score", None)
    width = classifier.config.get_text_config(decoder=True).hidden_size
    if type(score) is not nn.Linear or score.in_features != width:  # encoders have a classifier, of a pooled state
        raise ModelError(
            f"the value model {str(model)!r} is a {type(classifier).__name__}, whose score is not a linear function of "
            "the last token; give a reward model made from a causal language model."
        )
    _switch_dropout_off(classifier)
    _use_fused_gelu(classifier)
    return classifier.base_model.requires_grad_(True), score


def _is_classifier(name: str) -> bool:
    try:
        config = AutoConfig.from_pretrained(_source(name))
    except (OSError, ValueError, KeyError):
        return False  # an adapter without a configuration of its own; or nothing, which loading will say
    return any("ForSequenceClassification" in architecture for architecture in config.architectures or ())


def unwrapped(model: nn.Module) -> Any:
    """The PreTrainedModel inside a PeftModel (which holds its adapters), or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def positions_of(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads at most; None where its configuration does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raises TokenizerError where a tokenizer has tokens that a model does not know."""
    known = int(model.get_input_embeddings().weight.shape[0])
    if known < len(tokenizer):
        raise TokenizerError(
            f"the tokenizer has {len(tokenizer)} entries and the model's embedding only {known}; give the model's own "
            "tokenizer."
        )


def trunk_of(model: CausalLM) -> PreTrainedModel:
    """The transformer without its language-model head."""
    return unwrapped(model).base_model


def plain_head(model: CausalLM, logits_of: Callable[[CausalLM, Tensor], Tensor] | None = None) -> nn.Linear | None:
    """The output embedding, where the logits are nothing but its product with the hidden state; else None.

    Some models cap or scale their logits afterwards, which is found out by comparing on a few random states.

    Args:
        model: The model.
        logits_of: Gives its own logits; None: :func:`head_logits`.
    """
    head = unwrapped(model).get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, head.in_features, generator=generator).to(head.weight)
    with torch.no_grad():
        expected = (logits_of or head_logits)(model, 100 * hidden)
        plain = head(100 * hidden)
    return head if torch.allclose(expected.float(), plain.float(), rtol=1e-3, atol=1e-3) else None


def head_logits(model: CausalLM, hidden: Tensor) -> Tensor:
    """The model's own logits (N, V) for hidden states (N, D), with whatever it does after the output embedding."""
    inner = unwrapped(model)
    ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
    with _trunk_returning(inner.base_model, hidden[:, None]):
        return inner(input_ids=ids, use_cache=False).logits[:, 0]


def decoder_head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """As :func:`head_logits`, an encoder-decoder's, for its decoder's last hidden states (N, D)."""
    inner = unwrapped(model)
    ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
    unread = _TrunkOutput(last_hidden_state=hidden[:, None])
    with _trunk_returning(inner.get_decoder(), hidden[:, None]):
        return inner(encoder_outputs=unread, decoder_input_ids=ids, use_cache=False).logits[:, 0]


class _TrunkOutput(BaseModelOutputWithPast):
    """A trunk's output of which only the last hidden state is known."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _trunk_returning(trunk: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Inside, the trunk's forward pass is skipped: it returns ``hidden``."""
    trunk.forward = lambda *args, **kwargs: _TrunkOutput(last_hidden_state=hidden)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del trunk.forward


def _switch_dropout_off(model: nn.Module) -> None:
    """Sets every dropout to zero; rollout and update must see the same network (train mode stays on in the update)."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)


def _use_fused_gelu(model: nn.Module) -> None:
    """Replaces transformers' tanh GELU of eight kernels by PyTorch's single one: the same function, to rounding."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])


def frozen_copy(model: CausalLM) -> CausalLM:
    """A copy in evaluation mode that takes no gradients; it shares the base model's weights with an adapter's model."""
    return _copy(model, model).eval().requires_grad_(False)


def trunk_copy(model: CausalLM) -> PreTrainedModel:
    """A copy of the model's trunk, to be trained by itself; likewise."""
    return _copy(trunk_of(model), model)


def _copy(part: Any, model: CausalLM) -> Any:
    return copy.deepcopy(part, {id(weight): weight for weight in fixed_weights(model)})


def portable_model(model: CausalLM) -> PretrainedConfig | AdaptedModel:
    """What rebuilds the model without its weights, or without those that are its adapter's, and pickles no module."""
    return blueprint(model) if is_adapted(model) else portable_config(model)


@contextmanager
def adapters_disabled(model: CausalLM) -> Iterator[CausalLM]:
    """Inside, a PeftModel computes as its base model does."""
    with model.disable_adapter():  # type: ignore[operator]
        yield model
