"""Language-model agents, and Stable-Baselines3's PPO for them."""

from textgym.agents.kl import AdaptiveKL
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO
from textgym.agents.training_callbacks import FailureLimit

__all__ = ["PPO", "AdaptiveKL", "CausalLMPolicy", "FailureLimit"]
