"""The promises that hold on the CPU hold on a GPU."""

import numpy as np
import pytest
import stable_baselines3
import torch
from test_ppo import Ratios, make_agent
from test_sb3_equality import furthest, learned_parameters, toy_vec_env
from toy import MODELS

from textgym.adapters import base_weights
from textgym.agents import DQN, PPO, CausalLMPolicy

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


@pytest.mark.parametrize(("dtype", "bound"), [(None, 1e-5), ("bfloat16", 1e-6)])
def test_the_ratio_is_one_of_a_truncated_distribution(dtype, bound):
    ratios = Ratios()
    options = {"dtype": dtype, "temperature": 0.8, "top_k": 12, "top_p": 0.8}
    make_agent(device="cuda", kl_coef=0.1, policy_kwargs=options).learn(3 * 48, callback=ratios)
    assert np.abs(np.expm1(np.concatenate(ratios.log_ratios))).max() <= bound


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda a: a.__name__)
def test_an_adapter_is_saved_without_its_base_model_and_shares_it(algorithm, tmp_path):
    peft = pytest.importorskip("peft")
    MODELS["llama"]().save_pretrained(tmp_path / "base")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    policy_kwargs = {"model": str(tmp_path / "base"), "peft_config": adapter, "dtype": "bfloat16"}
    settings = {"n_steps": 12, "batch_size": 24} if algorithm is PPO else {"learning_starts": 10, "train_freq": 4}
    env = toy_vec_env(2, False)
    agent = algorithm("CausalLMPolicy", env, policy_kwargs=policy_kwargs, device="cuda", **settings).learn(96)
    if algorithm is DQN:
        shared = {id(weight) for weight in base_weights(agent.policy.model)}
        assert shared == {id(weight) for weight in base_weights(agent.policy.target[0])}
    agent.save(tmp_path / "agent.zip")
    assert all(
        "lora_" in name or "value_head" in name or "target.1" in name for name in agent.get_parameters()["policy"]
    )
    loaded = algorithm.load(tmp_path / "agent.zip", env=env, device="cuda")
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(value, loaded.policy.state_dict()[name], rtol=0, atol=0)
