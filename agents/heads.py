"""Log-probabilities and sampling over a vocabulary, without ever holding a minibatch's logits.

Shapes: N tokens, D the model's width, V the size of the action space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["sample_inverse_cdf", "token_log_probs"]

CHUNK_ELEMENTS = 2**21
"""Logits held at a time: 8 MB in float32, about the size of a processor's last cache."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of its distribution, ``softmax(hidden @ weight.T / temperature)``.

    The logits are computed chunk by chunk, and again in the backward pass (the idea of Wijmans et al., "Cut Your
    Losses in Large-Vocabulary Language Models", 2024), so memory is bounded by the chunk.

    Args:
        hidden: (N, D), the last hidden state before each token.
        weight: (V, D), the output embedding, already cut to the action space.
        bias: (V,) or None.
        tokens: (N,) int64.
        temperature: Divides the logits.
        entropy_gradient: False leaves the entropy out of the backward pass.

    Returns:
        Two float32 tensors of shape (N,).
    """
    return _TokenLogProbs.apply(hidden, weight, bias, tokens, temperature, entropy_gradient)


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
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        hidden_low, weight_low = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        log_prob = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        log_sum, entropy = torch.empty_like(log_prob), torch.empty_like(log_prob)
        for rows in _chunks(len(tokens), len(weight)):
            logits = _logits(hidden_low[rows], weight_low, bias, temperature)
            top = logits.amax(-1, keepdim=True)
            exponentials = torch.exp(logits - top)
            total = exponentials.sum(-1)
            log_sum[rows] = total.log() + top.squeeze(-1)
            log_prob[rows] = logits.gather(-1, tokens[rows, None]).squeeze(-1) - log_sum[rows]
            entropy[rows] = log_sum[rows] - torch.linalg.vecdot(exponentials, logits) / total
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum, entropy)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, log_sum, entropy = ctx.saved_tensors
        hidden_low, weight_low = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        needs_weight = ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in _chunks(len(tokens), len(weight)):
            logits = _logits(hidden_low[rows], weight_low, bias, ctx.temperature)
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
            grad = grad.to(ctx.dtype)
            grad_hidden[rows] = (grad @ weight_low).to(hidden.dtype)
            if grad_weight is not None:
                if ctx.dtype == weight.dtype:
                    grad_weight.addmm_(grad.T, hidden_low[rows])
                else:
                    grad_weight += grad.T @ hidden_low[rows]
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _chunks(n_rows: int, width: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // width)
    return [slice(start, start + size) for start in range(0, n_rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias.float()
    if temperature != 1.0:
        logits /= temperature
    return logits


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
