"""Credit crosses turns: a conversation whose first answer pays off three turns later is learned from random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from textgym import Sample, Task, TokenVectorEnv
from textgym.agents import PPO
from textgym.agents.playing import play_policy

FORECASTS = {"rain": True, "hail": True, "sun": False, "stars": False}  # and whether to take a coat
WORDS = ("<end>", "user:", "assistant:", *(f"{name}." for name in FORECASTS), "walk.", "coat.", "left.", "right.")
N_TURNS = 4
ITERATIONS = 60
N_EPISODES = 128


class Walk(Task):
    """Take a coat in the first turn if the forecast asks for one, else not; in the last, turn to the side that is told.

    Only who does both is paid, at the end. Each token ends its turn. Whoever ignores the forecast is dressed rightly
    half the time, whatever the first word, so that mastering the last turn alone is worth 0.5.
    """

    max_new_tokens = 2
    stop = (".", ":")

    def samples(self, split):
        return [Sample(forecast, f"{forecast}.") for forecast in FORECASTS]

    def respond(self, episode, rng):
        if len(episode.responses) == N_TURNS:
            return None
        if len(episode.responses) < N_TURNS - 1:
            return "walk."
        episode.state["side"] = ("left", "right")[rng.integers(2)]
        return episode.state["side"] + "."

    def reward(self, episode):
        return float(dressed_rightly(episode) and arrives(episode))


def dressed_rightly(episode):
    return (episode.responses[0] == "coat") == FORECASTS[episode.sample.id]


def arrives(episode):
    return episode.responses[-1] == episode.state["side"]


def environments():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    return TokenVectorEnv(Walk(), 64, tokenizer=tokenizer, max_context=20)


def trained(gamma, seed=0):
    """200 episodes of an agent trained from random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=20,
    )  # fmt: skip
    agent = PPO(
        "CausalLMPolicy", environments(), n_episodes=N_EPISODES, batch_size=512, n_epochs=4, learning_rate=1e-3,
        gamma=gamma, ent_coef=0.01, seed=seed, device="cpu", policy_kwargs={"model": LlamaForCausalLM(config)},
    )  # fmt: skip
    agent.learn(ITERATIONS * N_EPISODES * N_TURNS)
    return play_policy(agent.policy, environments(), [0, 1, 2, 3] * 50, deterministic=False)


def test_every_reward_before_the_last_turn_is_zero():
    venv = environments()
    venv.reset(seed=0)
    rng = np.random.default_rng(0)
    paid_at = []
    for step in range(40 * N_TURNS):
        _, rewards, terminated, _, _ = venv.step(rng.integers(len(WORDS), size=venv.num_envs))
        assert terminated.all() if step % N_TURNS == N_TURNS - 1 else not terminated.any()
        paid_at += [step % N_TURNS] * np.count_nonzero(rewards)
    assert set(paid_at) == {N_TURNS - 1}


def test_an_answer_that_pays_off_turns_later_is_learned():
    assert np.mean([episode.reward for episode in trained(gamma=1.0)]) > 0.9


def test_without_credit_across_turns_only_the_last_one_is_learned():
    """A turn is a token, so with gamma=0 no turn is credited with what a later one earns."""
    episodes = trained(gamma=0.0)
    assert np.mean([dressed_rightly(episode) for episode in episodes]) == pytest.approx(0.5, abs=0.15)
    assert np.mean([arrives(episode) for episode in episodes if dressed_rightly(episode)]) > 0.9
    assert np.mean([episode.reward for episode in episodes]) < 0.65
