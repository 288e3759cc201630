"""Language-model agents, and Stable-Baselines3's algorithms for them."""

from textgym.agents.a2c import A2C
from textgym.agents.dqn import DQN
from textgym.agents.grpo import GRPO
from textgym.agents.kl import AdaptiveKL
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO
from textgym.agents.reinforce import REINFORCE
from textgym.agents.rloo import RLOO
from textgym.agents.training_callbacks import FailureLimit

__all__ = ["A2C", "DQN", "GRPO", "PPO", "REINFORCE", "RLOO", "AdaptiveKL", "CausalLMPolicy", "FailureLimit"]
