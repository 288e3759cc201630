import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

import textgym
from textgym import TextEnv, TokenEnv
from textgym.text_env import UnicodeText


def test_one_turn(capitals):
    env = TextEnv(capitals)
    observation, info = env.reset(seed=0, options={"sample": 0})
    assert observation == "The capital of France is"
    assert info == {"sample_id": "France", "messages": [{"role": "user", "content": observation}]}
    observation, reward, terminated, truncated, info = env.step("Paris, naturellement: 漢字 😀")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["episode_record"]["stop_reason"] == "eos"
    assert info["messages"][-1] == {"role": "assistant", "content": "Paris, naturellement: 漢字 😀"}
    with pytest.raises(ResetNeeded):
        env.step("more")


def test_several_turns(guess):
    env = TextEnv(guess)
    observation, _ = env.reset(seed=0, options={"sample": 2})
    assert observation == "user: Guess 2."
    observation, reward, terminated, _, info = env.step("7! no, 2")  # cut at the task's stop string
    assert observation.startswith("No. Here is a hint")
    assert not terminated
    assert reward == 0.01
    assert info["response"] == "7"
    _, _, terminated, _, info = env.step("2")
    assert terminated
    assert info["episode_record"]["stop_reason"] == "task"


@pytest.mark.parametrize("name", ["capitals", "guess"])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_same_episode_at_either_level(request, chat_tokenizer, name, with_tokenizer):
    task = request.getfixturevalue(name)
    token_env = TokenEnv(task, tokenizer=chat_tokenizer)
    text_env = TextEnv(task, tokenizer=chat_tokenizer if with_tokenizer else None)
    for seed in range(10):
        replies = iter(["Rome", "", "2!", "3"])
        token_env.reset(seed=seed)
        text_env.reset(seed=seed)
        over = False
        while not over:
            reply = next(replies)
            _, rewards, over, _, info = token_env.step_turn(token_env.setting.renderer.reply_ids(reply))
            _, reward, text_over, _, text_info = text_env.step(reply)
            assert (reward, text_over) == (pytest.approx(rewards.sum()), over)
            assert {key: info[key] for key in text_info if key != "messages"} == {
                key: text_info[key] for key in text_info if key != "messages"
            }
        assert token_env.episode.record() == text_env.episode.record()


def test_budgets_hold_where_there_is_a_tokenizer(capitals, tokenizer):
    env = TextEnv(capitals, tokenizer=tokenizer, max_new_tokens=3)
    env.reset(seed=0)
    *_, info = env.step("xyzabc")
    assert info["response"] == "xyz"
    assert info["episode_record"]["stop_reason"] == "length"
    env = TextEnv(capitals, max_new_tokens=3)
    env.reset(seed=0)
    assert env.step("xyzabc")[4]["response"] == "xyzabc"


@pytest.mark.parametrize("tokens", [True, False])
def test_a_failed_score_is_marked(guess, chat_tokenizer, tokens):
    reward = textgym.reward(lambda response: 1 / 0, when="token") + textgym.reward(lambda response: 1.0, when="turn")
    env = TextEnv(guess, reward=reward, tokenizer=chat_tokenizer if tokens else None)
    env.reset(seed=0)
    _, value, _, _, info = env.step("9")
    assert value == 0.0
    assert "ZeroDivisionError" in info["score_status"]


def test_misuse(capitals):
    with pytest.raises(ResetNeeded):
        TextEnv(capitals).step("x")
    env = TextEnv(capitals)
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(3)


def test_render(capitals):
    env = TextEnv(capitals, render_mode="ansi")
    env.reset(options={"sample": 0})
    assert env.render() == "user: The capital of France is"


def test_unicode_text():
    space = UnicodeText(100)
    assert "Où est-il ? 漢字 😀\n" in space
    assert "" in space
    assert "x" * 101 not in space
    assert 3 not in space
    space.seed(3)
    first = [space.sample() for _ in range(20)]
    space.seed(3)
    assert first == [space.sample() for _ in range(20)]
    assert all(text in space for text in first)
    assert len(set(first)) > 10
    assert space == UnicodeText(100) != UnicodeText(101)
    assert space != gym.spaces.Text(100)
    assert repr(space) == "UnicodeText(100)"
    with pytest.raises(ValueError, match="mask"):
        space.sample(mask=(3, None))
    assert isinstance(gym.vector.utils.batch_space(space, 2), gym.spaces.Tuple)
    assert np.random.get_state()[0] == "MT19937"
