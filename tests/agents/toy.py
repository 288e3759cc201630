"""A token environment of a few lines, written without textgym's own, and models small enough for a test."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import transformers
from gymnasium import spaces

VOCABULARY = 40
END = 1
CONTEXT = 48

MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_layer=2, n_embd=32, n_head=2, n_positions=CONTEXT, bos_token_id=0, eos_token_id=1
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=CONTEXT,
        )
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=VOCABULARY + 9, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        )
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1,
        )
    ),
}  # fmt: skip


class ToyEnv(gym.Env):
    """Prompts of 2 to 7 tokens; a turn ends at END or after ``turn_tokens``; the reward is dense and per turn."""

    def __init__(self, turns: int = 1, turn_tokens: int = 6, fails: bool = False, max_context: int = CONTEXT) -> None:
        self.turns, self.turn_tokens, self.fails, self.max_context = turns, turn_tokens, fails, max_context
        box = {
            "input_ids": spaces.Box(0, VOCABULARY - 1, (max_context,), np.int64),
            "attention_mask": spaces.Box(0, 1, (max_context,), np.int8),
            "agent_mask": spaces.Box(0, 1, (max_context,), np.int8),
        }
        self.observation_space = spaces.Dict(box)
        self.action_space = spaces.Discrete(VOCABULARY)

    def _observation(self):
        n = len(self.ids)
        pad = [0] * (self.max_context - n)
        return {
            "input_ids": np.array(self.ids + pad, np.int64),
            "attention_mask": np.array([1] * n + pad, np.int8),
            "agent_mask": np.array(self.mine + pad, np.int8),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ids = self.np_random.integers(2, VOCABULARY, self.np_random.integers(2, 8)).tolist()
        self.mine = [0] * len(self.ids)
        self.turn = self.used = 0
        return self._observation(), {}

    def step(self, action):
        self.ids.append(int(action))
        self.mine.append(1)
        self.used += 1
        reward = float(action % 7) / 7 - 0.3
        if action != END and self.used < self.turn_tokens:
            return self._observation(), reward, False, False, {}
        self.turn, self.used = self.turn + 1, 0
        done = self.turn == self.turns
        if not done:
            new = self.np_random.integers(2, VOCABULARY, self.np_random.integers(1, 4)).tolist()
            self.ids += new
            self.mine += [0] * len(new)
        failed = done and self.fails and sum(self.ids) % 2 == 0
        info = {"score_status": "broken" if failed else "ok"}
        return self._observation(), 0.0 if failed else reward + len(self.ids) % 3, done, False, info
