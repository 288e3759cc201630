"""Language-model agents: Stable-Baselines3's algorithms, learning from data, and agents to compare with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textgym.agents.a2c import A2C
from textgym.agents.agent_specs import make_agent
from textgym.agents.baselines import AlwaysAbstain, BestOfN, CausalLMAgent, RandomAgent, ReferenceAgent
from textgym.agents.dqn import DQN, CausalLMQPolicy
from textgym.agents.grpo import GRPO
from textgym.agents.kl import AdaptiveKL
from textgym.agents.openai_agent import OpenAIAgent
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO
from textgym.agents.preferences import Preference, load_preferences, paired, preference_accuracy
from textgym.agents.reinforce import REINFORCE
from textgym.agents.rloo import RLOO
from textgym.agents.seq2seq import Seq2SeqLMPolicy
from textgym.agents.training_callbacks import FailureLimit

if TYPE_CHECKING:
    from textgym.agents.dpo import DPO
    from textgym.agents.reward_model_trainer import RewardModelTrainer
    from textgym.agents.sft import SFT

__all__ = [
    "A2C",
    "DPO",
    "DQN",
    "GRPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "SFT",
    "AdaptiveKL",
    "AlwaysAbstain",
    "BestOfN",
    "CausalLMAgent",
    "CausalLMPolicy",
    "CausalLMQPolicy",
    "FailureLimit",
    "OpenAIAgent",
    "Preference",
    "RandomAgent",
    "ReferenceAgent",
    "RewardModelTrainer",
    "Seq2SeqLMPolicy",
    "load_preferences",
    "make_agent",
    "paired",
    "preference_accuracy",
]

_LAZY = {  # these import transformers' Trainer, which takes as long as everything else (PEP 562)
    "DPO": "textgym.agents.dpo",
    "RewardModelTrainer": "textgym.agents.reward_model_trainer",
    "SFT": "textgym.agents.sft",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'textgym.agents' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
