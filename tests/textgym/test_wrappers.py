import random
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import textgym
from textgym import Sample, TextEnv, TokenEnv
from textgym.errors import ConfigurationError, PromptTooLongError
from textgym.text_env import UnicodeText
from textgym.wrappers import TokenLevel
from textgym.wrappers.third_party import Containment, known_name, optional_package


class Countdown(gym.Env):
    """Count down from a random number, one step a turn; each right number is worth 1, a wrong one -1 and the end."""

    def __init__(self):
        self.observation_space = UnicodeText()
        self.action_space = gym.spaces.Text(3, min_length=1)
        self.actions = []
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = (options or {}).get("from") or int(self.np_random.integers(2, 9))
        return f"Count down from {self.left}!", {"left": self.left}

    def step(self, action):
        self.actions.append(action)
        right = action == str(self.left)
        self.left -= right
        return f"{self.left} to go.", 1.0 if right else -1.0, not right or not self.left, False, {"left": self.left}

    def close(self):
        self.closed = True


def say(env, text):
    return env.step_turn(env.setting.renderer.reply_ids(text))


def stream(observation):
    n = int(observation["attention_mask"].sum())
    return observation["input_ids"][:n].tolist()


def test_a_conversation(chat_tokenizer):
    env = TokenLevel(Countdown(), chat_tokenizer, max_context=300, render_mode="ansi")
    before, info = env.reset(seed=3, options={"from": 2})
    assert info["env_info"] == {"left": 2}
    assert env.observation_space.contains(before)
    prompt = [{"role": "user", "content": "Count down from 2!"}]
    render = {"tokenize": False, "add_generation_prompt": True}
    assert chat_tokenizer.decode(stream(before)) == chat_tokenizer.apply_chat_template(prompt, **render)

    observation, rewards, terminated, truncated, info = say(env, "2")
    assert rewards.tolist() == [0.0, 1.0]
    assert (terminated, truncated) == (False, False)
    assert info == {
        "response": "2",
        "reward_parts": {"env": 1.0},
        "score_status": "ok",
        "env_info": {"left": 1},
        "n_tokens": 2,
    }
    assert stream(observation)[: len(stream(before))] == stream(before)
    assert int(observation["agent_mask"].sum()) == 2
    conversation = [*prompt, {"role": "assistant", "content": "2"}, {"role": "user", "content": "1 to go."}]
    assert chat_tokenizer.decode(stream(observation)) == chat_tokenizer.apply_chat_template(conversation, **render)

    after, rewards, terminated, truncated, info = say(env, "1")
    assert rewards.tolist() == [0.0, 1.0]
    assert (terminated, truncated) == (True, False)
    assert stream(after) == [*stream(observation), *env.setting.renderer.reply_ids("1")]
    assert info["episode_record"]["stop_reason"] == "task"
    assert info["episode_record"]["reward"] == 2.0
    assert info["metrics"] == {}
    assert env.env.actions == ["2", "1"]
    assert env.render() == "user: Count down from 2!\nassistant: 2\nuser: 1 to go.\nassistant: 1"
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_plain_format_and_stop_strings(tokenizer):
    env = TokenLevel(Countdown(), tokenizer, stop="\n", max_context=300)
    observation, _ = env.reset(options={"from": 2})
    assert tokenizer.decode(stream(observation)) == "user: Count down from 2!\nassistant:"
    *_, info = env.step_turn(tokenizer.encode("2\n"))
    assert env.env.actions == ["2"]
    assert info["response"] == "2"
    text = tokenizer.decode(stream(env.step(300)[0]))
    assert text.endswith("2\nuser: 1 to go.\nassistant:" + tokenizer.decode([300]))


def test_every_reset_has_its_own_prompt(chat_tokenizer):
    env = TokenLevel(Countdown(), chat_tokenizer, max_context=300)
    for number in (3, 7, 3):
        observation, info = env.reset(options={"from": number})
        assert f"from {number}!" in chat_tokenizer.decode(stream(observation))
        assert info["sample_id"] == env.samples[0].id
    assert env.reset(seed=5)[1] == env.reset(seed=5)[1]
    assert len({env.reset(seed=seed)[1]["sample_id"] for seed in range(20)}) > 3


def test_a_replaced_sample_is_tokenised_again(capitals, tokenizer):
    setting = TokenEnv(capitals, tokenizer=tokenizer).setting
    first = setting.prompt_ids(0)
    assert setting.prompt_ids(0) is first
    setting.samples = [Sample("other", "ab")]
    assert setting.prompt_ids(0).tolist() == tokenizer.encode("ab")


@pytest.mark.parametrize("name", ["capitals", "guess"])
def test_a_task_at_turn_level_made_token_level_again_is_the_task(request, chat_tokenizer, name):
    """TextEnv is an environment of texts; wrapped it must be what TokenEnv is of the same task."""
    task = request.getfixturevalue(name)
    samples = [Sample(s.id, s.messages[0]["content"], s.references, s.meta) for s in task.samples("train")]
    task.samples = lambda split: samples
    direct = TokenEnv(task, tokenizer=chat_tokenizer, max_context=400)
    wrapped = TokenLevel(
        TextEnv(task), chat_tokenizer, stop=task.stop, max_new_tokens=task.max_new_tokens, max_context=400
    )
    lengths = []
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(len(chat_tokenizer), size=60)
        tokens[::3] = chat_tokenizer.convert_tokens_to_ids("<|im_end|>") if seed % 2 else tokens[::3]
        observations = direct.reset(seed=seed)[0], wrapped.reset(seed=seed)[0]
        for token in tokens:
            assert all((observations[0][key] == observations[1][key]).all() for key in observations[0])
            mine, theirs = wrapped.step(token), direct.step(token)
            observations = mine[0], theirs[0]
            assert mine[1:4] == (pytest.approx(theirs[1]), *theirs[2:4])
            assert mine[4].get("response") == theirs[4].get("response")
            if theirs[2]:
                break
        lengths.append(len(wrapped.episode.responses))
        if direct.episode.stop_reason in ("length", "context"):
            assert wrapped.episode.stop_reason == direct.episode.stop_reason
    assert max(lengths) == (3 if name == "guess" else 1)


def test_a_turn_that_runs_out_of_tokens_is_the_last_action(chat_tokenizer):
    env = TokenLevel(Countdown(), chat_tokenizer, max_new_tokens=3, max_context=300)
    env.reset(options={"from": 3})
    say(env, "3")
    _, rewards, terminated, truncated, info = env.step_turn(chat_tokenizer.encode("zxq"))
    assert rewards.tolist() == [0.0, 0.0, -1.0]
    assert (terminated, truncated) == (True, False)
    assert env.env.actions == ["3", "zxq"]
    assert info["episode_record"]["stop_reason"] == "length"
    assert info["reward_parts"] == {"env": 0.0}
    assert info["env_info"] == {"left": 2}


def test_a_reply_that_does_not_fit_ends_the_episode_with_its_reward(chat_tokenizer):
    room = len(stream(TokenLevel(Countdown(), chat_tokenizer).reset(options={"from": 9})[0]))
    env = TokenLevel(Countdown(), chat_tokenizer, max_context=room + 5)
    env.reset(options={"from": 9})
    _, rewards, terminated, _, info = say(env, "9")
    assert (rewards.sum(), terminated) == (1.0, True)
    assert info["episode_record"]["stop_reason"] == "context"
    with pytest.raises(PromptTooLongError, match=f"more than {room}"):
        TokenLevel(Countdown(), chat_tokenizer, max_context=room).reset(options={"from": 9})


def test_truncation_is_passed_on(chat_tokenizer):
    env = TokenLevel(gym.wrappers.TimeLimit(Countdown(), 2), chat_tokenizer, max_context=400)
    env.reset(options={"from": 5})
    assert say(env, "5")[2:4] == (False, False)
    assert say(env, "4")[2:4] == (False, True)
    env.reset(options={"from": 2})
    say(env, "2")
    assert say(env, "1")[2:4] == (True, True)


def test_seeds_and_options_reach_the_environment(chat_tokenizer):
    env, bare = TokenLevel(Countdown(), chat_tokenizer), Countdown()
    for seed in (0, 1, None, 1):
        assert env.reset(seed=seed)[1]["env_info"] == bare.reset(seed=seed)[1] or seed is None
    env.reset(seed=4)
    numbers = [env.reset()[1]["env_info"]["left"] for _ in range(20)]
    bare.reset(seed=4)
    assert numbers == [bare.reset()[1]["left"] for _ in range(20)]


@pytest.mark.parametrize("reward", [float("nan"), "much", None])
def test_a_reward_that_is_no_number_is_a_failed_score(chat_tokenizer, monkeypatch, reward):
    env = TokenLevel(Countdown(), chat_tokenizer)
    env.reset(seed=0)
    monkeypatch.setattr(env.env, "step", lambda action: ("", reward, True, False, {}))
    _, rewards, terminated, _, info = say(env, "1")
    assert (rewards.sum(), terminated) == (0.0, True)
    assert info["score_status"].startswith("env: ")


def test_a_failed_score_stays_one(capitals, chat_tokenizer):
    env = TokenLevel(TextEnv(capitals, reward=lambda response: 1 / 0), chat_tokenizer)
    env.reset(seed=0)
    *_, info = say(env, "x")
    assert "ZeroDivisionError" in info["score_status"]
    assert info["metrics"] == {}


@pytest.mark.parametrize("reply", ["1", "1" * 70])
def test_what_the_environment_raises_is_raised(tokenizer, monkeypatch, reply):
    env = TokenLevel(Countdown(), tokenizer)
    env.reset(seed=0)

    def broken(action):
        raise RuntimeError("broken")

    monkeypatch.setattr(env.env, "step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        say(env, reply)


def test_misuse(tokenizer, capitals):
    with pytest.raises(ConfigurationError, match=r"observation space is a gymnasium\.spaces\.Text; this one's is Box"):
        TokenLevel(gym.make("CartPole-v1"), tokenizer)
    env = Countdown()
    env.action_space = gym.spaces.Discrete(2)
    with pytest.raises(ConfigurationError, match=r"action space .* Discrete\(2\)"):
        TokenLevel(env, tokenizer)
    with pytest.raises(ConfigurationError, match=r"takes a gymnasium\.Env"):
        TokenLevel(capitals, tokenizer)
    with pytest.raises(ConfigurationError, match="max_new_tokens=0"):
        TokenLevel(Countdown(), tokenizer, max_new_tokens=0)
    env = TokenLevel(Countdown(), tokenizer)
    env.env.reset = lambda seed, options: (b"bytes", {})
    with pytest.raises(ConfigurationError, match=r"observation is b'bytes' \(bytes\)"):
        env.reset()


def test_close(tokenizer):
    env = TokenLevel(Countdown(), tokenizer)
    env.close()
    assert env.env.closed


@pytest.mark.parametrize("name", ["tokenizer", "chat_tokenizer"])
def test_check_env(request, name):
    textgym.check_env(TokenLevel(Countdown(), request.getfixturevalue(name), max_context=300))


def test_in_a_vector(chat_tokenizer):
    def make():
        return TokenLevel(Countdown(), chat_tokenizer, max_context=200)

    venv = textgym.sb3_vec_env(SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP))
    venv.seed(7)
    observations = venv.reset()
    single = make()
    for row in range(3):
        assert (single.reset(seed=7 + row)[0]["input_ids"] == observations["input_ids"][row]).all()
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    _, rewards, dones, infos = venv.step(np.full(3, end))
    assert rewards.tolist() == [-1.0] * 3
    assert dones.all()
    assert infos[1]["episode"]["r"] == -1.0
    assert infos[1]["env_info"]["left"] >= 2
    assert infos[2]["terminal_observation"]["input_ids"].max() > 0


# Third parties


def states():
    return random.getstate(), np.random.get_state()[1].tolist()


def test_containment_leaves_the_global_generators_alone():
    before = states()
    contained = Containment(5)
    with contained:
        first = random.random(), np.random.random()
    with contained:
        second = random.random(), np.random.random()
    assert states() == before
    assert first == (random.Random(5).random(), np.random.RandomState(5).random())
    assert second != first
    contained.seed(5)
    with pytest.raises(KeyError, match="True"), contained:
        raise KeyError((random.random(), np.random.random()) == first)
    assert states() == before


def test_containment_swallows_warnings_and_prints(capsys):
    with Containment():
        warnings.warn("loud", UserWarning, stacklevel=1)
        print("loud")
    assert capsys.readouterr().out == ""
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_packages_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigurationError, match=r"needs the package reasoning_gym: pip install 'textgym\[x\]'"):
        optional_package("reasoning_gym", "x")


def test_names():
    assert known_name("b", {"a", "b"}, "letter") == "b"
    with pytest.raises(ConfigurationError, match=r"no animal 'dgo'. Did you mean 'dog'\?"):
        known_name("dgo", {"dog", "cat"}, "animal")
    with pytest.raises(ConfigurationError, match=r"no animal 'unicorn'. There are 'cat', 'dog'\."):
        known_name("unicorn", {"dog", "cat"}, "animal")
