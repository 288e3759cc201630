"""Every registered environment, with the built-in model: a new one gets these tests for nothing."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

import textgym
from textgym.agents import PPO
from textgym.errors import ConfigurationError
from textgym.sandbox import protections


@pytest.fixture(autouse=True)
def _needs_a_sandbox(env_id):
    """Code replies run where the system can enclose them, and nowhere else."""
    if env_id == "textgym/Code-v0":
        try:
            protections()
        except ConfigurationError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("env_id", textgym.registered_ids())
def test_checkers_pass(env_id):
    gymnasium_check_env(gym.make(env_id).unwrapped)
    stable_baselines3.common.env_checker.check_env(gym.make(env_id))
    textgym.check_env(gym.make(env_id))
    textgym.check_env(gym.make(env_id, level="turn"))


@pytest.mark.parametrize("steps", [100, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("env_id", textgym.registered_ids())
def test_random_tokens_raise_nothing(env_id, steps):
    """The slow one plays a million tokens."""
    venv = textgym.make_vec(env_id, num_envs=500, copy=False)
    rng = np.random.default_rng(0)
    venv.reset(seed=0)
    episodes = 0
    for _ in range(steps):
        _, rewards, terminated, truncated, _ = venv.step(rng.integers(0, venv.single_action_space.n, 500))
        assert np.isfinite(rewards).all()
        assert not truncated.any()
        episodes += int(terminated.sum())
    assert episodes > steps / 2


@pytest.mark.parametrize("env_id", textgym.registered_ids())
def test_ppo_trains(env_id):
    venv = textgym.make_vec(env_id, num_envs=4)
    agent = PPO("CausalLMPolicy", venv, n_steps=24, batch_size=48, n_epochs=1, learning_rate=1e-4, kl_coef=0.1, seed=0)
    before = agent.policy.model.get_input_embeddings().weight.detach().clone()
    agent.learn(2 * 96)
    assert not before.equal(agent.policy.model.get_input_embeddings().weight.detach())
    assert len(agent.ep_info_buffer) > 0
