"""What exists elsewhere as environments: Gymnasium's of texts, reasoning-gym's data sets, TextArena's games."""

from textgym.wrappers.procedural import ReasoningGymTask, reasoning_gym
from textgym.wrappers.text_games import TextArenaGame, textarena
from textgym.wrappers.token_level import TokenLevel

__all__ = ["ReasoningGymTask", "TextArenaGame", "TokenLevel", "reasoning_gym", "textarena"]
