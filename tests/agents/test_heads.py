"""The chunked head against the plain formula, and the inverse-CDF draw against its distribution."""

import pytest
import torch

from textgym.agents import heads
from textgym.agents.heads import sample_inverse_cdf, token_log_probs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_values_and_gradients_equal_the_plain_formula(bias, temperature, entropy_gradient, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_ROWS", 1)
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 100)  # several chunks, the last one smaller
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(31, dtype=torch.float64, requires_grad=True) if bias else None
    tokens = torch.randint(0, 31, (23,))
    up_log_prob, up_entropy = torch.randn(23), torch.randn(23)
    inputs = [x for x in (hidden, weight, offset) if x is not None]

    log_prob, entropy = token_log_probs(hidden, weight, offset, tokens, temperature, entropy_gradient)
    objective = (log_prob * up_log_prob).sum() + entropy_gradient * (entropy * up_entropy).sum()
    gradients = torch.autograd.grad(objective, inputs)

    logits = hidden @ weight.T / temperature + (0 if offset is None else offset / temperature)
    expected = torch.distributions.Categorical(logits=logits)
    wanted = (expected.log_prob(tokens) * up_log_prob).sum()
    wanted = wanted + entropy_gradient * (expected.entropy() * up_entropy).sum()
    torch.testing.assert_close(log_prob, expected.log_prob(tokens).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected.entropy().float(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_entropy_is_free_of_gradient_when_asked():
    hidden = torch.randn(5, 4, requires_grad=True)
    _, entropy = token_log_probs(hidden, torch.randn(7, 4), None, torch.zeros(5, dtype=torch.long), 1.0, False)
    entropy.sum().backward()
    assert float(hidden.grad.abs().max()) == 0.0


@pytest.mark.parametrize("elements", [2**21, 30_000])  # all in one chunk; several, and the weight's gradient in parts
def test_autocast_rounds_the_logits_only(elements, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_ROWS", 1)
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, requires_grad=True) for n in (40, 3000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, entropy = token_log_probs(hidden, weight, None, torch.zeros(40, dtype=torch.long))
    entropy.sum().backward()
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    expected = torch.distributions.Categorical(logits=(low[0] @ low[1].T).float()).entropy()
    torch.testing.assert_close(entropy, expected, atol=1e-4, rtol=0)
    expected.sum().backward()
    for ours, theirs in zip((hidden, weight), low, strict=True):
        assert (ours.grad - theirs.grad.float()).norm() / ours.grad.norm() < 0.01


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    probabilities = torch.softmax(2 * torch.randn(1, 700), -1)
    draws = sample_inverse_cdf(probabilities.expand(200_000, -1), torch.rand(200_000))
    frequency = torch.bincount(draws, minlength=700) / 200_000
    assert float((frequency - probabilities[0]).abs().sum()) < 0.05


def test_zero_probability_is_never_drawn_even_at_the_ends():
    probabilities = torch.zeros(3, 1000)
    probabilities[0, 5] = probabilities[1, 999] = 1.0
    probabilities[2, 300:302] = 0.5
    for u in (0.0, 0.5, 1 - 2**-24):
        drawn = sample_inverse_cdf(probabilities, torch.full((3,), u))
        assert drawn[0] == 5
        assert drawn[1] == 999
        assert drawn[2] in (300, 301)


def test_precision_holds_at_a_large_vocabulary():
    """Against a float64 cumulative sum over 150,000 entries: the same draw for all but a few uniform numbers."""
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(1, 150_000), -1)
    uniform = torch.rand(2_000)
    ours = sample_inverse_cdf(probabilities.expand(2_000, -1), uniform)
    cdf = probabilities[0].double().cumsum(-1)
    exact = torch.searchsorted(cdf, uniform.double() * cdf[-1], right=True)
    assert float((ours != exact).float().mean()) < 0.06
    assert int((ours - exact).abs().max()) <= 2
