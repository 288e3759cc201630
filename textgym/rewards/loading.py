"""Loading a model that scores, with every weight that it needs."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from textgym.adapters import adapter_tensors, base_of_folder, load_adapter
from textgym.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["load_pretrained"]


def load_pretrained(
    auto_class: str,
    name: str,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    may_lack: str | None = None,
) -> PreTrainedModel:
    """A model all of whose weights are there, but those under ``may_lack``; an adapter is merged into its base model.

    Raises:
        ModelError: There is no such model, or it was trained for something else.
    """
    import torch
    import transformers
    from safetensors import SafetensorError
    from stable_baselines3.common.utils import get_device

    is_classifier = auto_class == "AutoModelForSequenceClassification"
    base = base_of_folder(name) if is_classifier else None  # the others transformers puts together by itself
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            base or name,
            dtype=torch.float32 if dtype is None else dtype,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
            **({} if base is None else {"config": _adapters_config(name, base)}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"cannot load the reward's model {name!r} as {auto_class}: give a folder with config.json and weights, or "
            f"the name of a model that can be had from the hub ({type(error).__name__}: {error})."
        ) from error
    lacks = set(info["missing_keys"])
    if base is not None:
        model = load_adapter(model, name).merge_and_unload()
        lacks -= adapter_tensors(name)
    missing = sorted(key for key in lacks if may_lack is None or not key.startswith(may_lack))
    if missing:  # transformers would fill them with random numbers
        raise ModelError(
            f"{name!r} has no weights for {', '.join(missing[:3])}{' and others' * (len(missing) > 3)}, which "
            f"{auto_class} needs: it was trained for something else."
        )
    return model.to(get_device(device))


def _adapters_config(folder: str, base: str) -> Any:
    """The configuration beside an adapter; without one, the base model's, with one class."""
    from transformers import AutoConfig

    own = os.path.isfile(os.path.join(folder, "config.json"))
    return AutoConfig.from_pretrained(folder) if own else AutoConfig.from_pretrained(base, num_labels=1)
