"""Copies for passes without gradients compute what the model itself does, faster."""

import copy

import pytest
import torch
import torch.nn.functional as F
from toy import MODELS, VOCABULARY

from textgym.agents.inference import FixedLinear, autocast, inference_copy


def ids():
    return torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_a_fixed_layer_takes_what_a_linear_one_takes(bias, dtype):
    linear = torch.nn.Linear(24, 17, bias=bias)
    low = torch.float32 if dtype is None else dtype
    fixed = FixedLinear(linear.weight, linear.bias, dtype, torch.float32)
    x = torch.randn(5, 3, 24)
    for given in (x, x.transpose(0, 1), x[:, 1], x[0, 0], x[:0], x.bfloat16()):
        expected = F.linear(given.to(low), linear.weight.to(low), linear.bias.to(low) if bias else None).float()
        tolerance = 1e-6 if dtype is None else 1e-2
        torch.testing.assert_close(fixed(given), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", MODELS)
@torch.no_grad()
def test_a_copy_computes_what_the_model_does(shape):
    trunk = MODELS[shape]().eval().base_model
    before = copy.deepcopy(trunk.state_dict())
    fixed = inference_copy(trunk, None)
    assert any(isinstance(module, FixedLinear) for module in fixed.modules())
    assert not any(isinstance(module, FixedLinear) for module in trunk.modules())
    torch.testing.assert_close(fixed(input_ids=ids())[0], trunk(input_ids=ids())[0], atol=1e-5, rtol=1e-5)
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("shape", MODELS)
@torch.no_grad()
def test_under_autocast_a_copy_computes_what_the_model_does_under_autocast(shape):
    trunk = MODELS[shape]().eval().base_model
    fixed = inference_copy(trunk, torch.bfloat16)
    exact = trunk(input_ids=ids())[0]
    with autocast("cpu", torch.bfloat16):
        rounded, copied = trunk(input_ids=ids())[0], fixed(input_ids=ids())[0]
    assert copied.dtype == rounded.dtype
    error = (rounded - exact).abs().max()
    assert (copied - rounded).abs().max() <= error
    assert (copied - exact).abs().mean() <= 1.2 * (rounded - exact).abs().mean()


def test_a_copy_shares_all_weights_but_those_of_linear_layers():
    trunk = MODELS["llama"]().base_model
    fixed = inference_copy(trunk, torch.bfloat16)
    assert {id(weight) for weight in trunk.parameters()} == {id(weight) for weight in fixed.parameters()}
    held = {module.fixed.dtype for module in fixed.modules() if isinstance(module, FixedLinear)}
    assert held == {torch.bfloat16}


@torch.no_grad()
def test_a_copy_is_of_the_weights_as_they_are():
    linear = torch.nn.Linear(4, 3)
    fixed = inference_copy(torch.nn.Sequential(linear), None)
    x = torch.randn(2, 4)
    expected = linear(x)
    linear.weight.zero_()
    torch.testing.assert_close(fixed(x), expected)


def test_a_layer_that_does_more_than_its_product_stays():
    hooked = torch.nn.Linear(4, 3)
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    network = torch.nn.Sequential(hooked, torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2)))
    fixed = inference_copy(network, None)
    assert not any(isinstance(module, FixedLinear) for module in fixed)
    x = torch.randn(2, 4)
    torch.testing.assert_close(fixed(x), network(x))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@torch.no_grad()
def test_a_new_adapter_is_copied_and_switched_off():
    peft = pytest.importorskip("peft")
    base = MODELS["llama"]().eval()
    expected = base.base_model(input_ids=ids())[0]
    adapter = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, adapter)
    trunk = model.get_base_model().base_model
    torch.testing.assert_close(inference_copy(trunk, None)(input_ids=ids())[0], trunk(input_ids=ids())[0])
    with model.disable_adapter():
        off = inference_copy(trunk, None)
    torch.testing.assert_close(off(input_ids=ids())[0], expected)


def test_attention_is_in_float32_inside_autocast_on_the_cpu():
    query, key, value = torch.randn(3, 1, 2, 5, 8).bfloat16()
    with autocast("cpu", torch.bfloat16):
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        product = torch.randn(2, 3) @ torch.randn(3, 2)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert product.dtype == torch.bfloat16
