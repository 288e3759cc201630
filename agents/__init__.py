"""Language-model agents, and Stable-Baselines3's PPO for them."""

from textgym.agents.kl import AdaptiveKL
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO

__all__ = ["PPO", "AdaptiveKL", "CausalLMPolicy"]
