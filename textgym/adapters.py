"""Adapters by peft: put on a model, read from a folder, and told apart from the base model that they sit on.

A folder that peft writes holds the adapter alone, and the name or path of its base model; so do our saved agents where
the base model came by a name or path. Its weights must then be the same when the adapter is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgym.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

__all__ = [
    "AdaptedModel",
    "adapter_tensors",
    "base_name",
    "base_of_folder",
    "base_weights",
    "blueprint",
    "check_base",
    "fingerprint",
    "fixed_weights",
    "is_adapted",
    "load_adapter",
    "portable_config",
    "put_adapter_on",
    "switches_off",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SAMPLED = 64
"""Entries of each weight that a fingerprint looks at: training moves nearly all of them."""


@dataclass(frozen=True)
class AdaptedModel:
    """What a model with an adapter is built from, all but the adapter's weights.

    Args:
        base: The name or path of the base model; or its configuration, where its weights are kept with the adapter's.
        adapter: The adapter's peft configuration.
        fingerprint: Of the weights that ``base`` must have; None: any.
    """

    base: str | PretrainedConfig
    adapter: Any
    fingerprint: str | None = None

    def check(self, model: nn.Module) -> None:
        """Sees to it that a model built from this has the base model's weights.

        Raises:
            ModelError: It has not.
        """
        check_base(model, self.base, self.fingerprint)


def is_adapted(model: Any) -> bool:
    """Whether it is a PeftModel, whose base model is found by switching the adapter off."""
    return hasattr(model, "disable_adapter")


def put_adapter_on(model: nn.Module, peft_config: Any, base: str | None = None) -> nn.Module:
    """A new adapter around a model, which is frozen.

    Args:
        model: Changed in place: its layers are wrapped.
        peft_config: Left as it is.
        base: The name or path that the model's weights came from; None: they are not on any disk for sure.

    Raises:
        ConfigurationError: The model has an adapter already, or the new one is not part of the model's layers.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigurationError(
            "the model has an adapter already: leave peft_config out to train that, or merge it first "
            "(peft's merge_and_unload) to put a new one on."
        )
    if peft_config.is_prompt_learning:
        raise ConfigurationError(
            f"{type(peft_config).__name__} adds tokens to the prompt, which a token environment knows nothing of; "
            "give an adapter of the layers, such as LoraConfig."
        )
    own = copy.deepcopy(peft_config)
    own.base_model_name_or_path = None  # peft warns where a configuration has been used with another model
    adapted: Any = get_peft_model(model, own)  # type: ignore[arg-type]
    adapted.textgym_base = base
    return adapted


# ------------------------------------------------------------------- folders


def base_of_folder(folder: str | os.PathLike[str]) -> str | None:
    """The name or path of the base model of the adapter in a local folder; None where there is no adapter.

    Raises:
        ModelError: The adapter does not name its base model.
    """
    file = Path(folder) / ADAPTER_CONFIG
    if not file.is_file():
        return None
    name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"{file} does not name the adapter's base model, which was given as an object without a name: save that "
            "with save_pretrained(folder), and write the folder into the file as base_model_name_or_path."
        )
    return str(name)


def load_adapter(base: nn.Module, folder: str | os.PathLike[str]) -> Any:
    """A PeftModel: the base model with the adapter of a local folder, which goes on being trained.

    Raises:
        ModelError: The adapter does not fit, or peft is not installed.
    """
    from safetensors import SafetensorError

    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(f"the adapter {str(folder)!r} needs peft: pip install 'textgym[peft]'.") from error
    try:
        adapted: Any = PeftModel.from_pretrained(base, os.fspath(folder), is_trainable=True)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot put the adapter {str(folder)!r} on its base model {base_of_folder(folder)!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    adapted.textgym_base = base_of_folder(folder)
    return adapted


def adapter_tensors(folder: str | os.PathLike[str]) -> set[str]:
    """The names, in the base model, of the weights that an adapter's folder holds."""
    from safetensors import safe_open

    file = Path(folder) / ADAPTER_WEIGHTS
    if not file.is_file():
        return set()
    with safe_open(file, "pt") as tensors:
        return {name.removeprefix("base_model.model.") for name in tensors.keys()}  # noqa: SIM118  # not iterable


# ------------------------------------------------------------ the base model


def base_name(model: Any) -> str | None:
    """The name or path whose weights a PeftModel's base model has for certain; None: it was given as an object."""
    return getattr(model, "textgym_base", None)


def base_weights(model: Any) -> list[nn.Parameter]:
    """The parameters of a PeftModel that are not its adapter's; none of any other model."""
    if not is_adapted(model):
        return []
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in own.values()}
    return [parameter for parameter in model.parameters() if parameter.data_ptr() not in places]


def switches_off(model: Any) -> bool:
    """Whether a PeftModel without its adapter is its base model as that was before.

    Some adapters train the base model's own biases, or begin by moving a part of its weights into the adapter (PiSSA,
    OLoRA, CorDA, LoftQ).
    """
    adapter = model.peft_config[model.active_adapter]
    start = getattr(adapter, "init_lora_weights", True)
    return getattr(adapter, "bias", "none") == "none" and (isinstance(start, bool) or start == "gaussian")


def fixed_weights(model: Any) -> list[nn.Parameter]:
    """The base weights of a PeftModel that no training changes, which copies of the model can share."""
    return [weight for weight in base_weights(model) if not weight.requires_grad]


def portable_config(model: Any) -> Any:
    """A model's configuration, with the precision that its weights have now, whatever they once were loaded in."""
    config = copy.deepcopy(model.config)
    config.dtype = next(model.parameters()).dtype
    return config


def blueprint(model: Any) -> AdaptedModel:
    """What builds a PeftModel again: on the base model of the same name, or on one like it."""
    name, adapter = base_name(model), model.peft_config[model.active_adapter]
    if name is None:
        return AdaptedModel(portable_config(model.get_base_model()), adapter)
    return AdaptedModel(name, adapter, fingerprint(base_weights(model)))


def check_base(model: Any, name: Any, wanted: str | None) -> None:
    """Sees to it that a PeftModel has the base model that its adapter was trained on, by their fingerprints.

    Raises:
        ModelError: It has not.
    """
    if wanted is not None and fingerprint(base_weights(model)) != wanted:
        raise ModelError(
            f"the weights of the base model {name!r} are not those that the adapter was trained on; put the original "
            "ones there, or their folder's name into adapter_config.json as base_model_name_or_path."
        )


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A digest of a sample of each weight in bfloat16, the same in whatever higher precision they are held."""
    import torch

    digest = hashlib.sha256()
    for weight in weights:
        flat = weight.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, min(SAMPLED, flat.numel()), dtype=torch.float64).long()
        digest.update(flat[places.to(flat.device)].bfloat16().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
