"""Incremental decoding with a cache in which every row stands at a position of its own.

Shapes: B rows (one an environment), T new tokens, W the longest row, D the model's width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textgym.agents.inference import copy_with

__all__ = ["IncrementalDecoder", "RowCache", "supports_row_cache"]

ATTENTION = "textgym_decoding"
"""The name under which transformers knows :func:`attend`."""

GROWTH = 64
"""Columns that are added when the longest row has filled the cache."""


def supports_row_cache(trunk: PreTrainedModel, max_context: int) -> bool:
    """Whether incremental decoding gives what whole passes give.

    A layer with a window shorter than the context does not see its whole past, which a short trial cannot show; the
    rest (recurrent layers, positions or masks of its own) is found out by a trial on rows of different lengths.
    """
    config = trunk.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    windowed = any(kind != "full_attention" for kind in kinds) if kinds else window is not None
    if windowed and (window is None or window < max_context):
        return False
    device = next(trunk.parameters()).device
    ids = torch.arange(12, device=device).view(2, 6) % config.vocab_size
    lengths = torch.tensor([3, 5], device=device)
    try:
        with torch.no_grad():
            decoder = IncrementalDecoder(trunk, 2)
            decoder.advance(ids, lengths)
            decoder.advance(ids, lengths + 1)
            hidden = decoder.advance(ids, torch.tensor([6, 6], device=device))
            whole = trunk(input_ids=ids, use_cache=False)[0][:, -1]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False  # a model that cannot be called like this decodes without a cache
    return torch.allclose(hidden, whole, rtol=0, atol=2e-2 * float(whole.abs().max()))


class RowCache(DynamicCache):
    """A key-value cache that writes row i at columns of row i's own.

    Between :meth:`at` and the model's forward pass it stands for a subset of rows: their keys and values of T new
    tokens are written at ``starts[i] .. starts[i] + T - 1``. Where no row has a past, attention needs only the new
    keys, and gets just those; otherwise it gets the first W columns of the rows, and the caller masks what lies
    beyond a row's own end.
    """

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.n_rows = n_rows
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.rows: Tensor | None = None
        self.places = torch.empty(0), torch.empty(0)
        self.width = 0
        self.fresh = True

    def at(self, rows: Tensor | None, starts: Tensor, n_new: int, width: int, fresh: bool) -> RowCache:
        """Aims the next forward pass at ``rows`` (None: all of them), from column ``starts`` (R,) on."""
        self.rows, self.width, self.fresh = rows, width, fresh
        written = torch.arange(self.n_rows, device=starts.device) if rows is None else rows
        self.places = written[:, None], starts[:, None] + torch.arange(n_new, device=starts.device)
        return self

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes (R, heads, T, d) and returns what the queries attend to: (R, heads, T or W, d) each."""
        keys = self._write(self.keys, layer_idx, key_states)
        values = self._write(self.values, layer_idx, value_states)
        if self.fresh:
            return key_states, value_states
        if self.rows is None:
            return keys[:, :, : self.width], values[:, :, : self.width]
        return keys[self.rows, :, : self.width], values[self.rows, :, : self.width]

    def _write(self, store: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
        held = store.get(layer)
        if held is None or held.shape[2] < self.width:
            capacity = -(-self.width // GROWTH) * GROWTH
            grown = new.new_zeros(self.n_rows, new.shape[1], capacity, new.shape[3])
            if held is not None:
                grown[:, :, : held.shape[2]] = held
            store[layer] = held = grown
        rows, columns = self.places
        held[rows, :, columns] = new.transpose(1, 2).to(held.dtype)
        return held

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions and masks are always given where there is a past."""
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """As for an empty cache, which is what a pass without a mask stands for."""
        length = query_length if isinstance(query_length, int) else len(query_length)
        return length, 0


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """PyTorch's attention, as transformers calls it; for one query a row, two batched products.

    On a CPU those take less time than its own function, which goes over the keys head by head.

    Args:
        module: The attention layer.
        query: (R, heads, T, d).
        key, value: (R, key heads, W, d).
        attention_mask: (R, 1, T, W), added to the scores; None: causal attention.
        dropout, scaling, kwargs: As in transformers' attention functions.

    Returns:
        (R, T, heads, d), and None in place of the weights.
    """
    if query.shape[2] > 1 or attention_mask is None or dropout or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    rows, heads, _, size = query.shape
    products = rows * key.shape[1], heads // key.shape[1]  # query heads that share a key head are neighbours
    query = query * (size**-0.5 if scaling is None else scaling)
    scores = torch.bmm(query.reshape(*products, size), key.flatten(0, 1).transpose(1, 2))
    weights = (scores.view(rows, heads, 1, -1) + attention_mask).softmax(-1)
    return torch.bmm(weights.view(*products, -1), value.flatten(0, 1)).view(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attending(trunk: PreTrainedModel) -> PreTrainedModel:
    """The trunk with :func:`attend` in its layers where they use PyTorch's attention, on a CPU; it shares all else."""
    if trunk.config._attn_implementation != "sdpa" or trunk.device.type != "cpu":
        return trunk
    configs: dict[int, Any] = {}
    copied = copy_with(trunk, lambda part: None)
    for part in copied.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            part.config = configs.setdefault(id(config), copy.deepcopy(config))
            part.config._attn_implementation = ATTENTION
    return copied


class IncrementalDecoder:
    """The last hidden state of each row's observation, running only the tokens that the row gained.

    Addressed by content: where an observation extends what its row holds, only the new tokens are run; otherwise the
    row starts again at length 0. So a restart needs no signal, and there is nothing to keep in step with the
    environment. It is good for one set of weights: open a new one after an update.

    Args:
        trunk: A transformer without its head, called with ``input_ids``, returning ``last_hidden_state``.
        n_rows: B.
    """

    def __init__(self, trunk: PreTrainedModel, n_rows: int) -> None:
        self.trunk = _attending(trunk)
        self.cache = RowCache(n_rows)
        self.ids: Tensor | None = None
        self.lengths: Tensor | None = None
        self.hidden: Tensor | None = None

    def advance(self, input_ids: Tensor, lengths: Tensor, skip_restarts: bool = False) -> Tensor:
        """Hidden states (B, D) at the last token of each row.

        Args:
            input_ids: (B, W) int64, right-padded.
            lengths: (B,) int64, each at least 1.
            skip_restarts: Leave the rows that start again out; theirs is then an arbitrary finite vector.
        """
        with torch.inference_mode():
            self._advance(input_ids, lengths, skip_restarts)
        if self.hidden is None:  # nothing but skipped restarts
            size = self.trunk.config.get_text_config(decoder=True).hidden_size
            return torch.zeros(len(lengths), size, device=input_ids.device)
        return self.hidden.clone()

    def _advance(self, input_ids: Tensor, lengths: Tensor, skip_restarts: bool) -> None:
        width = int(lengths.max())
        input_ids = input_ids[:, :width]
        held = self._held(input_ids, lengths)
        gained = lengths - held
        restarted = held == 0
        one, several = (gained == 1) & ~restarted, (gained > 1) & ~restarted
        # asked for together, since each answer waits for the device
        any_one, any_several, any_restarted = torch.stack([one, several, restarted]).any(-1).tolist()
        if any_one:
            self._decode(input_ids, torch.where(restarted, 0, held).clamp_max(width - 1), one)
        if any_several:
            self._append(input_ids, lengths, held, several.nonzero().squeeze(-1))
        if any_restarted and not skip_restarts:
            self._prefill(input_ids, lengths, restarted.nonzero().squeeze(-1))
        self.ids = input_ids.clone()
        self.lengths = torch.where(restarted, 0, lengths) if skip_restarts else lengths.clone()

    def _held(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """How many leading tokens of each row are in the cache already: all that the row holds, or 0."""
        if self.ids is None or self.lengths is None:
            return torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        width = min(self.ids.shape[1], input_ids.shape[1])
        same = self.ids[:, :width] == input_ids[:, :width]
        same |= torch.arange(width, device=input_ids.device) >= self.lengths[:, None]
        extends = same.all(-1) & (self.lengths <= lengths)  # padding looks like token 0
        return torch.where(extends, self.lengths, 0)

    def _store(self, rows: Tensor, hidden: Tensor) -> None:
        if self.hidden is None:
            self.hidden = hidden.new_zeros(self.cache.n_rows, hidden.shape[-1])
        self.hidden[rows] = hidden

    def _decode(self, input_ids: Tensor, columns: Tensor, active: Tensor) -> None:
        """One token for all rows at once; what an inactive row writes behind its end is written again or never seen.

        One that has gained nothing and is the longest writes its last token again, as it was.
        """
        width = input_ids.shape[1]
        cache = self.cache.at(None, columns, 1, width, fresh=False)
        positions = columns[:, None]
        hidden = self._run(input_ids.gather(1, positions), cache, positions, width, positions)[:, -1]
        # not by the rows' numbers, for which the device would have to be waited for
        self.hidden = hidden if self.hidden is None else torch.where(active[:, None], hidden, self.hidden)

    def _append(self, input_ids: Tensor, lengths: Tensor, starts: Tensor, rows: Tensor) -> None:
        starts, ends = starts[rows], lengths[rows]
        n_new = int((ends - starts).max())
        width = int(starts.max()) + n_new
        columns = starts[:, None] + torch.arange(n_new, device=starts.device)
        tokens = input_ids[rows].gather(1, columns.clamp_max(input_ids.shape[1] - 1))
        cache = self.cache.at(rows, starts, n_new, width, fresh=False)
        # padding behind a row's end may lie outside the model's positions; any position inside will do
        positions = torch.minimum(columns, ends[:, None] - 1)
        hidden = self._run(tokens, cache, positions, width, columns)
        self._store(rows, hidden[torch.arange(len(rows), device=rows.device), ends - starts - 1])

    def _prefill(self, input_ids: Tensor, lengths: Tensor, rows: Tensor) -> None:
        ends = lengths[rows]
        width = int(ends.max())
        cache = self.cache.at(rows, torch.zeros_like(ends), width, width, fresh=True)
        hidden = self.trunk(input_ids=input_ids[rows, :width], past_key_values=cache, use_cache=True)[0]
        self._store(rows, hidden[torch.arange(len(rows), device=rows.device), ends - 1])

    def _run(self, tokens: Tensor, cache: RowCache, positions: Tensor, width: int, columns: Tensor) -> Tensor:
        """A pass over (R, T) tokens in which the one at column c sees columns 0 to c of its row."""
        visible = torch.arange(width, device=tokens.device) <= columns[:, :, None]
        dtype = next(self.trunk.parameters()).dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=tokens.device)
        mask = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
        return self.trunk(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )[0]
