"""Incremental decoding gives what whole passes give, whatever the rows do."""

import pytest
import torch
import transformers
from toy import CONTEXT, MODELS, VOCABULARY

from textgym.agents import decoding
from textgym.agents.decoding import IncrementalDecoder, supports_row_cache


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
