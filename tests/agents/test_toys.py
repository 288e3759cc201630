"""Algorithms learn toys, from a short warm start: the reward on all of a toy's samples, greedy."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

import textgym
from textgym.agents import A2C, DQN, GRPO, PPO, REINFORCE, RLOO, CausalLMPolicy
from textgym.agents.playing import play_policy
from textgym.agents.warm_start import demonstrations, imitate
from textgym.token_env import TokenEnv

THRESHOLDS = {"Identity": 0.95, "Increasing": 0.9, "Copy": 0.9}
COMMON = {"learning_rate": 1e-4, "gamma": 1.0, "seed": 0, "device": "cpu"}
EPISODES = {"n_episodes": 256, "batch_size": 512}
Q_LEARNING = {  # a letter is worth 0.25: exp(-0.25 / scale) times 3,072 tokens has to stay small
    "policy_kwargs": {"scale": 0.02},
    "gamma": 0.5,  # a toy pays at once
    "batch_size": 256,
    "train_freq": 8,
    "gradient_steps": 8,
    "learning_starts": 2_000,
    "target_update_interval": 1_000,
    "exploration_final_eps": 0.2,
}
ALGORITHMS = {
    "A2C": (A2C, {"n_episodes": 64, "use_rms_prop": False, "gae_lambda": 1.0}),
    "PPO": (PPO, {**EPISODES, "n_epochs": 2}),
    "REINFORCE": (REINFORCE, EPISODES),
    "RLOO": (RLOO, EPISODES),
    "GRPO": (GRPO, {**EPISODES, "n_epochs": 2, "kl_coef": 0.0}),
    "DQN": (DQN, Q_LEARNING),
}
MAX_STEPS = 80_000
PAIRS = [
    pytest.param(name, toy, marks=() if toy == "Identity" else pytest.mark.slow)
    for toy in THRESHOLDS
    for name in ALGORITHMS
]


class UntilLearned(BaseCallback):
    """Stops where the greedy reward is high enough, looked at every few rollouts."""

    def __init__(self, venv, threshold, every=2_000):
        super().__init__()
        self.venv, self.threshold, self.every = venv, threshold, every
        self.reward, self.next = -np.inf, every

    def _on_step(self):
        return self.reward < self.threshold

    def _on_rollout_start(self):
        if self.num_timesteps >= self.next:
            self.next += self.every
            self.reward = mean_reward(self.model.policy, self.venv)

    def _on_training_end(self):
        self.reward = mean_reward(self.model.policy, self.venv)


def mean_reward(policy, venv):
    return float(np.mean([episode.reward for episode in play_policy(policy, venv)]))


@pytest.fixture(scope="module")
def warm_started(tmp_path_factory):
    """By toy: a folder with the built-in model after ten epochs of its demonstrations, and its reward."""
    made = {}

    def make(toy):
        if toy not in made:
            torch.manual_seed(0)
            venv = textgym.make_vec(f"textgym/{toy}-v0", num_envs=64).unwrapped
            policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0)
            policy.tokenizer = venv.tokenizer
            env = TokenEnv(venv.task, reward=lambda: 0.0, tokenizer=venv.tokenizer)
            shown = demonstrations(env, venv.task.warm_start_samples(), venv.task.demonstration)
            imitate(policy, shown, epochs=10, learning_rate=3e-4)
            folder = tmp_path_factory.mktemp(toy)
            policy.save_pretrained(folder)
            made[toy] = str(folder), mean_reward(policy, venv)
        return made[toy]

    return make


def make_agent(name, toy, folder):
    algorithm, arguments = ALGORITHMS[name]
    group = {"group_size": 8} if algorithm in (RLOO, GRPO) else {}
    env = textgym.make_vec(f"textgym/{toy}-v0", num_envs=64, split="train", **group)
    settings = {**COMMON, **arguments}
    policy_kwargs = {"model": folder, **settings.pop("policy_kwargs", {})}
    return algorithm("CausalLMPolicy", env, policy_kwargs=policy_kwargs, **settings)


@pytest.mark.parametrize(("name", "toy"), PAIRS)
def test_it_learns_the_toy(name, toy, warm_started):
    folder, before = warm_started(toy)
    assert before < 0.75
    judge = textgym.make_vec(f"textgym/{toy}-v0", num_envs=64, split="validation").unwrapped
    until = UntilLearned(judge, THRESHOLDS[toy])
    make_agent(name, toy, folder).learn(MAX_STEPS, callback=until)
    assert until.reward >= THRESHOLDS[toy]
