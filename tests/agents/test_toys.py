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
ENVS = {"num_envs": 64, "split": "train"}
COMMON = {"learning_rate": 3e-4, "gamma": 1.0, "seed": 0, "device": "cpu"}
EPISODES = {"n_episodes": 256}
ALGORITHMS = {
    "A2C": (A2C, {**EPISODES, "use_rms_prop": False, "gae_lambda": 1.0, "learning_rate": 6e-4}),
    "PPO": (PPO, {**EPISODES, "batch_size": 512, "n_epochs": 2}),
    "REINFORCE": (REINFORCE, {**EPISODES, "batch_size": 512}),
    "RLOO": (RLOO, {**EPISODES, "batch_size": 512}),
    "GRPO": (GRPO, {**EPISODES, "batch_size": 512, "n_epochs": 2, "kl_coef": 0.0}),
    "DQN": (DQN, {"batch_size": 512, "train_freq": 4, "learning_starts": 2_000, "target_update_interval": 2_000}),
}
MAX_STEPS = 60_000
LEARNED = [  # A2C and REINFORCE fall to 0.25 and 0.29 on Copy with these settings; the others are still to be tried
    ("REINFORCE", "Identity"),
    ("DQN", "Identity"),
    ("A2C", "Increasing"),
    ("PPO", "Increasing"),
    ("REINFORCE", "Increasing"),
    ("RLOO", "Increasing"),
    ("GRPO", "Increasing"),
    ("PPO", "Copy"),
]


class UntilLearned(BaseCallback):
    """Stops where the greedy reward is high enough, looked at every few thousand steps."""

    def __init__(self, venv, threshold, every=6_000):
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
            env = TokenEnv(venv.task, reward=lambda: 0.0, tokenizer=venv.tokenizer)
            shown = demonstrations(env, venv.task.warm_start_samples(), venv.task.demonstration)
            imitate(policy, shown, epochs=10, learning_rate=3e-4)
            folder = tmp_path_factory.mktemp(toy)
            policy.save_pretrained(folder)
            made[toy] = str(folder), mean_reward(policy, venv)
        return made[toy]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("name", "toy"), LEARNED)
def test_it_learns_the_toy(name, toy, warm_started):
    folder, before = warm_started(toy)
    assert before < 0.75
    algorithm, arguments = ALGORITHMS[name]
    group = {"group_size": 8} if algorithm in (RLOO, GRPO) else {}
    env = textgym.make_vec(f"textgym/{toy}-v0", **ENVS, **group)
    agent = algorithm("CausalLMPolicy", env, policy_kwargs={"model": folder}, **{**COMMON, **arguments})
    judge = textgym.make_vec(f"textgym/{toy}-v0", num_envs=64, split="validation").unwrapped
    until = UntilLearned(judge, THRESHOLDS[toy])
    agent.learn(MAX_STEPS, callback=until)
    assert until.reward >= THRESHOLDS[toy]
