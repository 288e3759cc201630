"""Copies of a model for passes without gradients: linear layers cast once, and laid out as their product reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

__all__ = ["FixedLinear", "autocast", "copy_with", "inference_copy"]


class FixedLinear(nn.Module):
    """A linear layer whose weight does not change, with what autocast would make of it: ``x @ weight.T + bias``.

    Autocast casts a weight again in every pass; a decoding step of a few rows spends most of its time on that. And on a
    CPU the matrix product of a few rows packs the weight each time; oneDNN takes it packed beforehand.

    Args:
        weight: (N, K).
        bias: (N,) or None.
        dtype: The precision of the product; None: the weight's own.
        result_dtype: The precision of the result; None: the product's.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype | None = None,
        result_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # as the module has them that this one stands for
        self.dtype = weight.dtype if dtype is None else dtype
        self.result_dtype = self.dtype if result_dtype is None else result_dtype
        self.fixed = weight.detach().to(self.dtype)
        self.fixed_bias = None if bias is None else bias.detach().to(self.dtype)
        self.is_packed = _packs(self.fixed)
        if self.is_packed:
            self.fixed = torch.ops.mkldnn._reorder_linear_weight(self.fixed.contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        x = x.to(self.dtype)
        if self.is_packed:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.fixed, self.fixed_bias, "none", [], "")
        else:
            result = F.linear(x, self.fixed, self.fixed_bias)
        return result.to(self.result_dtype)


def _packs(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not (on_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def inference_copy(module: Any, dtype: torch.dtype | None = None, result_dtype: torch.dtype | None = None) -> Any:
    """The module, with its linear layers as :class:`FixedLinear`; it shares all other weights with the original.

    Good for as long as the weights do not change. Not for gradients.

    Args:
        module: Any module.
        dtype, result_dtype: Of the linear layers. Where a copy is called under autocast, ``dtype`` is its precision;
            with ``result_dtype=torch.float32`` it needs none, and computes all but the products in float32.
    """

    def fixed(layer: Any) -> nn.Module | None:
        if type(layer) not in (nn.Linear, Conv1D) or _is_hooked(layer):
            return None
        weight = layer.weight if type(layer) is nn.Linear else layer.weight.T
        return FixedLinear(weight, layer.bias, dtype, result_dtype)

    return copy_with(module, fixed)


def copy_with(module: Any, replaced: Callable[[nn.Module], nn.Module | None]) -> Any:
    """The module built again of the same weights, with some of its parts replaced; None leaves a part as it is."""
    replacement = replaced(module)
    if replacement is not None:
        return replacement
    parts = module._modules.items()
    copied = object.__new__(type(module))  # copy.copy goes by pickle, which some modules refuse
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_modules"] = {name: None if part is None else copy_with(part, replaced) for name, part in parts}
    return copied


def _is_hooked(module: nn.Module) -> bool:
    """Whether a call does more than the module's class says; accelerate replaces ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@contextmanager
def autocast(device: str, dtype: torch.dtype) -> Iterator[None]:
    """PyTorch's autocast, with attention in float32 on a CPU, whose kernel for bfloat16 is several times slower."""
    with torch.autocast(device, dtype=dtype), _FloatAttention() if device == "cpu" else nullcontext():
        yield


class _FloatAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = [_as_float(value) for value in args], {name: _as_float(kwargs[name]) for name in kwargs}
            return func(*args, **kwargs)


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
