"""The promises that hold on the CPU hold on a GPU."""

import numpy as np
import pytest
import stable_baselines3
import torch
from test_ppo import Ratios, make_agent
from test_sb3_equality import furthest, learned_parameters, toy_vec_env
from toy import MODELS

from textgym.agents import PPO, CausalLMPolicy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("shape", MODELS)
def test_parameters_equal_those_of_stock_ppo(shape):
    torch.manual_seed(0)
    model = MODELS[shape]()
    ours = learned_parameters(PPO, "CausalLMPolicy", toy_vec_env(4, True), model, device="cuda")
    stock = learned_parameters(stable_baselines3.PPO, CausalLMPolicy, toy_vec_env(4, True), model, device="cuda")
    assert furthest(ours, stock) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(None, 1e-5), ("bfloat16", 1e-6)])
def test_the_ratio_is_one_before_the_first_update(dtype, bound):
    ratios = Ratios()
    make_agent(device="cuda", kl_coef=0.1, policy_kwargs={"dtype": dtype}).learn(3 * 48, callback=ratios)
    assert np.abs(np.expm1(np.concatenate(ratios.log_ratios))).max() <= bound
