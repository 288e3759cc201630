"""Incremental decoding gives what whole passes give, whatever the rows do."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from toy import CONTEXT, MODELS, VOCABULARY

from textgym.agents import decoding
from textgym.agents.decoding import ATTENTION, IncrementalDecoder, attend, supports_row_cache


def random_ids(n, generator):
    return torch.randint(0, VOCABULARY, (n,), generator=generator)


@pytest.mark.parametrize("growth", [1, 64])
@pytest.mark.parametrize("shape", MODELS)
@torch.no_grad()
def test_hidden_states_equal_whole_passes(shape, growth, monkeypatch):
    """Rows that gain no, one or several tokens, restart, and fill the context, all mixed."""
    monkeypatch.setattr(decoding, "GROWTH", growth)  # at 1 the cache is never wider than its longest row
    generator = torch.Generator().manual_seed(1)
    trunk = MODELS[shape]().eval().base_model
    decoder = IncrementalDecoder(trunk, 5)
    ids = torch.zeros(5, CONTEXT, dtype=torch.long)
    lengths = torch.randint(1, 8, (5,), generator=generator)
    for row in range(5):
        ids[row, : lengths[row]] = random_ids(lengths[row], generator)
    for _ in range(120):
        hidden = decoder.advance(ids, lengths)
        whole = trunk(input_ids=ids[:, : lengths.max()], use_cache=False)[0][torch.arange(5), lengths - 1]
        torch.testing.assert_close(hidden, whole, atol=1e-5, rtol=0)
        for row in range(5):
            draw = torch.rand((), generator=generator).item()
            gain = 1 if draw < 0.7 else 0 if draw < 0.75 else int(torch.randint(2, 6, (), generator=generator))
            if draw > 0.95 or lengths[row] + gain > CONTEXT:
                lengths[row] = torch.randint(1, 8, (), generator=generator)
                ids[row] = 0
                ids[row, : lengths[row]] = random_ids(lengths[row], generator)
            else:
                ids[row, lengths[row] : lengths[row] + gain] = random_ids(gain, generator)
                lengths[row] += gain


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_pytorchs(key_heads, n_queries, scaling):
    query, key, value = torch.randn(5, 4, n_queries, 8), *torch.randn(2, 5, key_heads, 7, 8)
    hidden = torch.rand(5, 1, n_queries, 7) < 0.4
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
    layer = torch.nn.Module()
    layer.num_key_value_groups = 4 // key_heads
    found, weights = attend(layer, query, key, value, mask, scaling=scaling)
    key, value = (x.repeat_interleave(4 // key_heads, dim=1) for x in (key, value))
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert weights is None


def test_the_model_keeps_its_own_attention():
    trunk = MODELS["llama"]().eval().base_model
    decoder = IncrementalDecoder(trunk, 2)
    layers = [module for module in decoder.trunk.modules() if hasattr(module, "q_proj")]
    assert {layer.config._attn_implementation for layer in layers} == {ATTENTION}
    assert trunk.config._attn_implementation == "sdpa"
    assert all(module.config is trunk.config for module in trunk.modules() if hasattr(module, "q_proj"))
    assert {id(weight) for weight in decoder.trunk.parameters()} == {id(weight) for weight in trunk.parameters()}


@torch.no_grad()
def test_skipped_restarts_start_again_later():
    trunk = MODELS["llama"]().eval().base_model
    decoder = IncrementalDecoder(trunk, 2)
    ids = torch.arange(10).view(2, 5)
    lengths = torch.tensor([5, 5])
    first = decoder.advance(ids, lengths, skip_restarts=True)
    assert torch.isfinite(first).all()
    torch.testing.assert_close(decoder.advance(ids, lengths), trunk(input_ids=ids)[0][:, -1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_changed_token_restarts_the_row():
    trunk = MODELS["gpt2"]().eval().base_model
    decoder = IncrementalDecoder(trunk, 2)
    ids = torch.arange(2, 12).view(2, 5)
    decoder.advance(ids, torch.tensor([4, 4]))
    ids[1, 2] = 30
    hidden = decoder.advance(ids, torch.tensor([5, 5]))
    torch.testing.assert_close(hidden, trunk(input_ids=ids)[0][:, -1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_padding_is_not_taken_for_a_token_0():
    trunk = MODELS["gpt2"]().eval().base_model
    decoder = IncrementalDecoder(trunk, 2)
    ids = torch.arange(2, 12).view(2, 5)
    ids[0, 2:] = 0
    decoder.advance(ids, torch.tensor([3, 4]))
    hidden = decoder.advance(ids, torch.tensor([2, 5]))  # the first row starts again, without its token 0
    torch.testing.assert_close(hidden[0], trunk(input_ids=ids[:1, :2])[0][0, -1], atol=1e-6, rtol=0)


def test_models_that_do_not_see_their_whole_past_take_the_uncached_path():
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    mistral = transformers.MistralConfig(
        **small, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, sliding_window=16
    )
    mamba = transformers.MambaConfig(**small)
    assert not supports_row_cache(transformers.MistralForCausalLM(mistral).eval().base_model, CONTEXT)
    assert supports_row_cache(transformers.MistralForCausalLM(mistral).eval().base_model, 16)
    assert not supports_row_cache(transformers.MambaForCausalLM(mamba).eval().base_model, CONTEXT)


@pytest.mark.parametrize("shape", MODELS)
def test_full_attention_models_are_decoded_incrementally(shape):
    assert supports_row_cache(MODELS[shape]().eval().base_model, CONTEXT)
