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

from textgym.errors import ModelError

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
    "plain_head",
    "trunk_of",
    "unwrapped",
]

ModelLike = str | Path | PretrainedConfig | PreTrainedModel
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
    """The model itself, or the one of that name, path or configuration (with random weights), in float32.

    Args:
        model: A PreTrainedModel (or PeftModel) is used in place; weights are loaded from safetensors, or from pickles
            with ``weights_only``.
        peft_config: Wraps it in an adapter.

    Raises:
        ModelError: There is no such model, or it is no causal language model.
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
    if isinstance(model, PretrainedConfig):
        return model
    return _config(str(model)) if isinstance(model, (str, Path)) else getattr(unwrapped(model), "config", None)


def _says_encoder_decoder(config: PretrainedConfig | None) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _load(model: ModelLike | nn.Module, kind: _Kind, peft_config: Any) -> nn.Module:
    config = _config_of(model)
    if config is not None and _says_encoder_decoder(config) != kind.is_encoder_decoder:
        other = CAUSAL if kind is SEQ2SEQ else SEQ2SEQ
        name = model if isinstance(model, (str, Path)) else type(model).__name__
        raise ModelError(f"{name} is {other.name} and not {kind.name}; the policy for it is {other.policy!r}.")
    if isinstance(model, PretrainedConfig):
        loaded: nn.Module = kind.auto_class.from_config(model)
    elif isinstance(model, (str, Path)):
        loaded = _from_pretrained(str(model), config, kind)
    elif isinstance(model, nn.Module) and hasattr(model, "get_output_embeddings"):
        loaded = model
    else:
        raise ModelError(
            f"a model is a name, a path, a configuration or a PreTrainedModel, not {type(model).__name__}."
        )
    if getattr(unwrapped(loaded), "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{type(loaded).__name__} has no language-model head; give a model {kind.example}.")
    if peft_config is not None:
        from peft import get_peft_model

        loaded = get_peft_model(loaded, peft_config)  # type: ignore[arg-type]
    _switch_dropout_off(loaded)
    _use_fused_gelu(loaded)
    return loaded


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


def unwrapped(model: nn.Module) -> Any:
    """The PreTrainedModel inside a PeftModel (which holds its adapters), or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


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
    """A copy in evaluation mode that takes no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextmanager
def adapters_disabled(model: CausalLM) -> Iterator[CausalLM]:
    """Inside, a PeftModel computes as its base model does."""
    with model.disable_adapter():  # type: ignore[operator]
        yield model
