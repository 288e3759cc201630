"""Log-probabilities and sampling over a vocabulary, without ever holding a minibatch's logits.

Shapes: N tokens, D the model's width, V the size of the action space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from textgym.agents.inference import FixedLinear

__all__ = ["chunks", "sample_inverse_cdf", "token_log_probs", "truncate"]

CHUNK_ELEMENTS = 2**21
"""Logits held at a time: 8 MB in float32, about the size of a processor's last cache."""

GPU_CHUNK_ELEMENTS = 2**28
"""The same on a GPU, 1 GB: there, each chunk costs the time to start its kernels."""

CHUNK_ROWS = 128
"""At least so many rows at a time, however large the vocabulary: each chunk reads the whole output embedding."""

FIRST_LOOK = 256
"""How many of the likeliest tokens are looked at first for those that make up a share of the probability."""

CUT_OFF = -1e9
"""In place of minus infinity where it is multiplied by its probability: 0 times this is 0, and its exponential is 0."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    entropy_gradient: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of its distribution, ``softmax(hidden @ weight.T / temperature)``.

    With ``top_k`` or ``top_p`` the distribution is the truncated one of :func:`truncate`, the token always kept. The
    gradient is that of the distribution over the set as it is; that the set moves with the weights has none.

    The logits are computed chunk by chunk, and again in the backward pass (the idea of Wijmans et al., "Cut Your
    Losses in Large-Vocabulary Language Models", 2024), so memory is bounded by the chunk.

    Args:
        hidden: (N, D), the last hidden state before each token.
        weight: (V, D), the output embedding, already cut to the action space.
        bias: (V,) or None.
        tokens: (N,) int64.
        temperature: Divides the logits.
        entropy_gradient: False leaves the entropy out of the backward pass.
        top_k, top_p: As in :func:`truncate`.

    Returns:
        Two float32 tensors of shape (N,).
    """
    return _TokenLogProbs.apply(hidden, weight, bias, tokens, temperature, entropy_gradient, top_k, top_p)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        entropy_gradient: bool,
        top_k: int | None,
        top_p: float | None,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        product = FixedLinear(weight, None, ctx.dtype)  # not kept: micro-batches would each hold one
        log_prob = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        log_sum, entropy = torch.empty_like(log_prob), torch.empty_like(log_prob)
        bounds = None if top_k is None and top_p is None else torch.empty_like(log_prob)[:, None]
        scratch = _Scratch()
        for rows in chunks(len(tokens), len(weight), weight.device):
            logits = _logits(product(hidden[rows]), bias, temperature, scratch)
            if bounds is not None:
                bounds[rows] = _lower_bound(logits, top_k, top_p)
                logits.masked_fill_(_outside(logits, bounds[rows], tokens[rows]), CUT_OFF)
            top = logits.amax(-1, keepdim=True)
            logits -= top
            exponentials = torch.exp(logits, out=scratch.of("exponentials", logits, torch.float32))
            total = exponentials.sum(-1)
            log_total = total.log()
            log_sum[rows] = log_total + top.squeeze(-1)
            log_prob[rows] = logits.gather(-1, tokens[rows, None]).squeeze(-1) - log_total
            entropy[rows] = log_total - logits.mul_(exponentials).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum, entropy, bounds)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, log_sum, entropy, bounds = ctx.saved_tensors
        product = FixedLinear(weight, None, ctx.dtype)
        hidden_low, weight_low = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        scratch = _Scratch()
        for rows in chunks(len(tokens), len(weight), weight.device):
            logits = _logits(product(hidden_low[rows]), bias, ctx.temperature, scratch)
            if bounds is not None:
                logits.masked_fill_(_outside(logits, bounds[rows], tokens[rows]), CUT_OFF)
            logits -= log_sum[rows, None]
            # d log p(a) / d logit_j = 1[j = a] - p_j;  d H / d logit_j = -p_j (log p_j + H)
            scale = -grad_log_prob[rows, None]
            if ctx.entropy_gradient:
                scale = scale - grad_entropy[rows, None] * (logits + entropy[rows, None])
            grad = logits.exp_().mul_(scale)
            grad.scatter_add_(-1, tokens[rows, None], grad_log_prob[rows, None])
            if ctx.temperature != 1.0:
                grad /= ctx.temperature
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = scratch.cast("grad", grad, ctx.dtype)
            grad_hidden[rows] = (grad @ weight_low).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, hidden_low[rows])
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def chunks(n_rows: int, width: int, device: torch.device) -> list[slice]:
    """Cuts the rows of an array, as wide as the logits (N, V), into parts that are held at a time."""
    elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    size = max(CHUNK_ROWS, elements // width)
    return [slice(start, start + size) for start in range(0, n_rows, size)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, part by part where the product is of another type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for part in chunks(len(total), total.shape[1], total.device):
        total[part] += left[part] @ right


class _Scratch:
    """Memory that every chunk uses again; large arrays that are made anew come from the system, page by page."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def of(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """An array of the shape of ``like``, of whatever content; the first of a name is the longest."""
        if name not in self.held:
            self.held[name] = torch.empty_like(like, dtype=dtype)
        return self.held[name][: len(like)]

    def cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor itself where it has the type."""
        return tensor if tensor.dtype == dtype else self.of(name, tensor, dtype).copy_(tensor)


def _logits(product: Tensor, bias: Tensor | None, temperature: float, scratch: _Scratch) -> Tensor:
    logits = scratch.cast("logits", product, torch.float32)
    if bias is not None:
        logits += bias.float()
    if temperature != 1.0:
        logits /= temperature
    return logits


# ---------------------------------------------------------------- truncation


def truncate(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, kept: Tensor | None = None
) -> Tensor:
    """Logits with minus infinity at the tokens that are cut off, first by ``top_k`` and then by ``top_p``.

    The sets are those of transformers' ``TopKLogitsWarper`` and ``TopPLogitsWarper``, but that tokens with the same
    logit as the last one of the nucleus are in it too, whatever their order.

    Source: Fan et al., "Hierarchical Neural Story Generation", 2018 (top-k); Holtzman et al., "The Curious Case of
    Neural Text Degeneration", 2020, equation 2 (top-p, https://arxiv.org/abs/1904.09751).

    Args:
        logits: (R, V) float32.
        top_k: How many of the likeliest tokens are left; None: all.
        top_p: The fewest likeliest tokens with at least this probability are left (of what ``top_k`` leaves,
            normalised); None: all.
        kept: (R,) int64, a token of each row that is never cut off; None: there is none.

    Returns:
        (R, V); the logits themselves where nothing is asked.
    """
    if top_k is None and top_p is None:
        return logits
    bound = _lower_bound(logits.detach(), top_k, top_p)
    return logits.masked_fill(_outside(logits, bound, kept), -torch.inf)


def _outside(logits: Tensor, bounds: Tensor, kept: Tensor | None) -> Tensor:
    """What lies below its row's bound (R, 1) and is not kept; (R, V) bool."""
    outside = logits < bounds
    return outside if kept is None else outside.scatter_(-1, kept[:, None], False)


def _lower_bound(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """A number a row, (R, 1), between the lowest logit that is left and the highest that is cut off."""
    bound = torch.full_like(logits[:, :1], -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        highest = logits.topk(top_k + 1).values
        bound = _between(highest[:, top_k - 1 : top_k], highest[:, top_k:])
    if top_p is not None and top_p < 1:
        left = logits.masked_fill(logits < bound, -torch.inf)
        bound = torch.maximum(bound, _nucleus_bound(left, top_p))
    return bound


def _nucleus_bound(logits: Tensor, top_p: float) -> Tensor:
    """Likewise for ``top_p``: a token is left where the likelier ones together have less than that. Sorts no more than
    it must of a large vocabulary.
    """
    width = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)
    size = min(FIRST_LOOK, width)
    while True:
        highest = logits.topk(size).values
        likelier = (highest - total).exp_().cumsum(-1)[:, :-1]
        n_left = 1 + (likelier < top_p).sum(-1, keepdim=True)
        if size == width or bool((n_left < size).all()):
            break
        size = min(8 * size, width)
    following = highest.gather(-1, n_left.clamp_max(size - 1)).masked_fill_(n_left == size, -torch.inf)
    return _between(highest.gather(-1, n_left - 1), following)


def _between(high: Tensor, low: Tensor) -> Tensor:
    """In the middle, so that rounding moves nothing across; ``high`` where they are the same or next to each other."""
    middle = low + (high - low) / 2
    return torch.where(torch.isneginf(low), low, torch.where(middle > low, middle, high))


# ------------------------------------------------------------------- sampling


def sample_inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draws one index a row: the inverse of the cumulative distribution at one uniform number a row.

    The cumulative sum runs over blocks of 256 entries and then inside one block, which keeps it exact to float32
    rounding at any vocabulary, and never returns an entry of probability zero.

    Args:
        probabilities: (B, V) float32, non-negative; rows need not sum to one.
        uniform: (B,) float32 in [0, 1).

    Returns:
        (B,) int64.
    """
    rows, width = probabilities.shape
    block_size = 256
    padding = -width % block_size
    if padding:
        probabilities = torch.nn.functional.pad(probabilities, (0, padding))
    blocks = probabilities.view(rows, -1, block_size)
    block_cdf = blocks.sum(-1).cumsum(-1)
    target = uniform[:, None] * block_cdf[:, -1:]
    block = _first_above(block_cdf, target)
    before = torch.where(block > 0, block_cdf.gather(-1, (block - 1).clamp_min(0)), torch.zeros_like(target))
    inside = blocks[torch.arange(rows, device=block.device), block.squeeze(-1)]
    return (block * block_size + _first_above(inside.cumsum(-1), target - before)).squeeze(-1)


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """First index with ``cdf > target``; where rounding leaves none, the last at which the sum still grew."""
    last = (cdf < cdf[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum((cdf <= target).sum(-1, keepdim=True), last)
