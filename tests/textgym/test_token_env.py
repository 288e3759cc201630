import random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

import textgym
from textgym import Sample, Task, TokenEnv
from textgym.errors import ConfigurationError, DataError, PromptTooLongError, TextGymWarning


def say(env, text, end=True):
    """Steps a reply; what the last step returned."""
    renderer = env.setting.renderer
    ids = renderer.reply_ids(text)
    for token in ids if end else ids[:-1]:
        result = env.step(token)
    return result


def stream(obs):
    n = int(obs["attention_mask"].sum())
    return obs["input_ids"][:n].tolist(), obs["agent_mask"][:n].tolist()


def test_one_turn(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer, max_context=32)
    obs, info = env.reset(seed=1, options={"sample": 0})
    assert info == {"sample_id": "France"}
    assert env.observation_space.contains(obs)
    prompt, agent = stream(obs)
    assert prompt == tokenizer.encode("The capital of France is")
    assert not any(agent)
    obs, reward, terminated, truncated, info = say(env, " Paris")
    assert (reward, terminated, truncated) == (1.0, True, False)
    reply = [*tokenizer.encode(" Paris"), tokenizer.eos_token_id]
    assert stream(obs) == (prompt + reply, [0] * len(prompt) + [1] * len(reply))
    assert info == {
        "response": " Paris",
        "reward_parts": {"reward": 1.0},
        "score_status": "ok",
        "episode_record": env.episode.record(),
        "metrics": {"length": 6.0},
    }
    assert env.episode.stop_reason == "eos"
    assert env.episode.seed == 1


def test_steps_before_the_end_are_worth_nothing_and_say_nothing(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(300)
    assert (reward, terminated, info) == (0.0, False, {})


@pytest.mark.parametrize(
    ("reply", "end", "budget", "stop", "reason", "response"),
    [
        ("", True, 8, (), "eos", ""),
        ("Rome", True, 8, (), "eos", "Rome"),
        ("xyzxyz", False, 3, (), "length", "xyz"),
        ("xyzxyz", True, 100, (), "eos", "xyzxyz"),
        ("ab. cd", False, 100, (".",), "stop_string", "ab"),
        ("ab", False, 2, ("b",), "stop_string", "a"),  # a stop string on the budget's last token
        ("a漢字b", False, 100, ("字",), "stop_string", "a漢"),  # a stop string of several tokens
        ("one\n\ntwo", False, 100, "\n\n", "stop_string", "one"),  # a string is one stop string
    ],
)
def test_how_a_turn_ends(capitals, tokenizer, reply, end, budget, stop, reason, response):
    capitals.stop = stop
    env = TokenEnv(capitals, tokenizer=tokenizer, max_new_tokens=budget)
    env.reset(seed=0)
    ids = tokenizer.encode(reply) + [tokenizer.eos_token_id] * end
    *_, terminated, truncated, info = env.step_turn(ids)
    assert (terminated, truncated) == (True, False)
    assert info["episode_record"]["stop_reason"] == reason
    assert info["response"] == response


def test_context_ends_an_episode(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer, max_context=12, max_new_tokens=100)
    obs, _ = env.reset(options={"sample": 0})
    n = int(obs["attention_mask"].sum())
    obs, rewards, terminated, _, info = env.step_turn([300] * 50)
    assert terminated
    assert info["episode_record"]["stop_reason"] == "context"
    assert len(rewards) == info["n_tokens"] == 12 - n
    assert obs["attention_mask"].all()


def test_every_end_token_ends_a_turn(capitals, chat_tokenizer):
    env = TokenEnv(capitals, tokenizer=chat_tokenizer)
    for name in ("<|endoftext|>", "<|im_end|>"):
        env.reset(seed=0)
        assert env.step(chat_tokenizer.convert_tokens_to_ids(name))[2]
    env.reset(seed=0)
    assert not env.step(chat_tokenizer.pad_token_id)[2]


def test_several_turns(guess, chat_tokenizer):
    env = TokenEnv(guess, tokenizer=chat_tokenizer, max_context=200)
    before, _ = env.reset(seed=3, options={"sample": 4})
    obs, reward, terminated, _, info = say(env, "12")
    assert (reward, terminated) == (0.02, False)
    assert info == {"response": "12", "reward_parts": {"length": 0.02}, "score_status": "ok"}
    hint = env.episode.turns[-1]
    assert hint.role == "user"
    assert hint.text.startswith("No. Here is a hint")
    ids, agent = stream(obs)
    assert ids[: len(stream(before)[0])] == stream(before)[0]
    assert sum(agent) == len(chat_tokenizer.encode("12")) + 1
    assert chat_tokenizer.decode(ids) == chat_tokenizer.apply_chat_template(
        env.episode.messages, tokenize=False, add_generation_prompt=True
    )
    obs, reward, terminated, _, info = say(env, "a 4")
    assert terminated
    assert info["episode_record"]["stop_reason"] == "task"
    assert info["reward_parts"] == {"length": pytest.approx(0.05)}
    assert env.episode.reward == pytest.approx(0.05)


def test_a_message_without_room_ends_the_episode(guess, chat_tokenizer):
    room = len(TokenEnv(guess, tokenizer=chat_tokenizer).setting.prompt_ids(0))
    env = TokenEnv(guess, tokenizer=chat_tokenizer, max_context=room + 12)
    env.reset(options={"sample": 0})
    _, _, terminated, _, info = say(env, "7")
    assert terminated
    assert info["episode_record"]["stop_reason"] == "context"
    assert [turn.role for turn in env.episode.turns] == ["assistant"]


def test_running_out_of_a_turns_budget_ends_a_conversation(guess, chat_tokenizer):
    env = TokenEnv(guess, tokenizer=chat_tokenizer)
    env.reset(seed=0)
    say(env, "77")
    _, _, terminated, _, info = env.step_turn([300] * 20)
    assert terminated
    assert info["n_tokens"] == guess.max_new_tokens
    assert info["episode_record"]["stop_reason"] == "length"


def test_a_task_that_says_nonsense(guess, chat_tokenizer):
    env = TokenEnv(guess, tokenizer=chat_tokenizer)
    guess.respond = lambda episode, rng: 3
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"Guess.respond returned 3 \(int\)"):
        say(env, "x")


def test_rewards_of_all_moments_add_up(capitals, tokenizer):
    per_token = textgym.reward(lambda response: 0.25, name="token", when="token")
    per_turn = textgym.reward(lambda response: 0.5, name="turn", when="turn")
    at_end = textgym.reward(lambda response: 1.0, name="end")
    env = TokenEnv(capitals, reward=2 * per_token + per_turn + at_end, tokenizer=tokenizer)
    env.reset(seed=0)
    _, rewards, _, _, info = env.step_turn([300, 301, tokenizer.eos_token_id])
    assert rewards.tolist() == [0.5, 0.5, 2.0]
    assert info["reward_parts"] == {"token": 0.75, "turn": 0.5, "end": 1.0}
    assert info["episode_record"]["reward"] == 3.0


def test_a_token_reward_sees_the_text_so_far(capitals, tokenizer):
    seen = []

    def look(episode):
        seen.append([turn.text for turn in episode.turns])
        return 0.0

    env = TokenEnv(capitals, reward=textgym.reward(look, when="token"), tokenizer=tokenizer)
    env.reset(seed=0)
    env.step_turn([*tokenizer.encode("xy"), tokenizer.eos_token_id])
    assert seen == [["x"], ["xy"], ["xy"]]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (lambda response: 1 / 0, "ZeroDivisionError"),
        (lambda response: float("nan"), "not a finite number"),
        (lambda response: float("inf"), "not a finite number"),
        (lambda response: "high", "returns a number"),
        (lambda response: textgym.Score(None, status="refused"), "refused"),
    ],
)
def test_a_failed_score_is_marked(capitals, tokenizer, bad, status):
    env = TokenEnv(capitals, reward=bad, tokenizer=tokenizer)
    env.reset(seed=0)
    _, reward, terminated, _, info = say(env, " Paris")
    assert (reward, terminated) == (0.0, True)
    assert status in info["score_status"]
    assert status in info["episode_record"]["score_status"]
    assert info["metrics"] == {}


def test_a_failure_on_the_way_is_the_episodes(guess, chat_tokenizer):
    @textgym.reward(when="turn")
    def moody(episode):
        if len(episode.responses) == 1:
            raise RuntimeError("not yet")
        return 1.0

    env = TokenEnv(guess, reward=moody, tokenizer=chat_tokenizer)
    env.reset(seed=0, options={"sample": 0})
    _, reward, _, _, info = say(env, "7")
    assert reward == 0.0
    assert "not yet" in info["score_status"]
    _, reward, _, _, info = say(env, "8")
    assert reward == 1.0
    assert info["score_status"] == "ok"
    _, reward, terminated, _, info = say(env, "0")
    assert terminated
    assert reward == 1.0
    assert "not yet" in info["score_status"]


def test_a_failed_token_score_is_marked_at_once(capitals, tokenizer):
    @textgym.reward(when="token")
    def fussy(response):
        return float("nan") if response == "xy" else 1.0

    env = TokenEnv(capitals, reward=fussy, tokenizer=tokenizer)
    env.reset(seed=0)
    steps = [env.step(token) for token in [*tokenizer.encode("xyz"), tokenizer.eos_token_id]]
    assert [step[1] for step in steps] == [1.0, 0.0, 1.0, 1.0]
    assert [step[4].get("score_status", "ok") == "ok" for step in steps] == [True, False, True, False]
    env.reset(seed=0)
    info = env.step_turn([*tokenizer.encode("xyz"), tokenizer.eos_token_id])[4]
    assert info["score_status"] == steps[1][4]["score_status"]


def test_stepping_after_the_end_needs_a_reset(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        _ = env.episode
    env.reset(seed=0)
    env.step(tokenizer.eos_token_id)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(300)


@pytest.mark.parametrize("action", [-1, 10**6, 1.5, "x", None, [1, 2], True])
def test_bad_actions(capitals, tokenizer, action):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_step_turn_wants_a_token(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="at least one token"):
        env.step_turn([])


def test_prompts_that_do_not_fit(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer, max_context=7)
    n = len(tokenizer.encode("The capital of France is"))
    assert n == 7
    with pytest.raises(PromptTooLongError, match=r"sample 'France' has 7 tokens, and max_context=7 .* more than 7"):
        env.reset(options={"sample": 0})


@pytest.mark.parametrize("index", [4, -1, "France", 1.0])
def test_bad_sample_options(capitals, tokenizer, index):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    with pytest.raises(ConfigurationError, match=r"options\['sample'\]"):
        env.reset(options={"sample": index})


def test_bad_arguments(capitals, tokenizer):
    with pytest.raises(ConfigurationError, match="max_new_tokens=0"):
        TokenEnv(capitals, tokenizer=tokenizer, max_new_tokens=0)
    with pytest.raises(ConfigurationError, match=r"max_context=1\.5"):
        TokenEnv(capitals, tokenizer=tokenizer, max_context=1.5)
    with pytest.raises(ConfigurationError, match=r"is no textgym\.Task"):
        TokenEnv(type(capitals), tokenizer=tokenizer)

    class Mute(Task):
        def samples(self, split):
            return [Sample("a", "b")] if split == "train" else []

    with pytest.raises(ConfigurationError, match="Mute has no reward"):
        TokenEnv(Mute(), tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"split 'test' of Mute has no samples.*split="):
        TokenEnv(Mute(), reward=lambda response: 0.0, split="test", tokenizer=tokenizer)


def test_masks(capitals, tokenizer, chat_tokenizer, monkeypatch):
    assert TokenEnv(capitals, tokenizer=tokenizer).action_masks().all()  # pads with its eos
    env = TokenEnv(capitals, tokenizer=chat_tokenizer)
    env.reset(seed=0)
    assert np.flatnonzero(~env.action_masks()).tolist() == [chat_tokenizer.pad_token_id]
    monkeypatch.setattr(type(capitals), "forbidden_tokens", lambda self, episode, vocabulary: [vocabulary["a"]])
    env = TokenEnv(capitals, tokenizer=tokenizer)
    env.reset(seed=0)
    assert np.flatnonzero(~env.action_masks()).tolist() == [tokenizer.convert_tokens_to_ids("a")]


@pytest.mark.parametrize("name", ["capitals", "guess"])
def test_seeds_fix_the_episode_and_nothing_else_is_drawn_from(request, chat_tokenizer, name):
    env = TokenEnv(request.getfixturevalue(name), tokenizer=chat_tokenizer)

    def play(seed):
        tokens = np.random.default_rng(seed).integers(len(chat_tokenizer), size=200)
        trace = [env.reset(seed=seed)]
        for token in tokens:
            trace.append(env.step(token))
            if trace[-1][2]:
                return str(trace)
        return str(trace)

    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    first = [play(seed) for seed in range(5)]
    assert [play(seed) for seed in range(5)] == first
    assert len(set(first)) == 5
    assert (state, numpy_state) == (random.getstate(), np.random.get_state()[1].tolist())


def test_samples_are_drawn_from_all(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    env.reset(seed=0)
    assert {env.reset()[1]["sample_id"] for _ in range(50)} == {country for country, _ in capitals.capitals}


def test_nothing_of_an_episode_survives_a_reset(guess, chat_tokenizer):
    env = TokenEnv(guess, tokenizer=chat_tokenizer)
    clean, _ = env.reset(seed=0, options={"sample": 0})
    for text in ("5", "6", "9999"):
        say(env, text)
    assert env.episode.stop_reason
    again, _ = env.reset(seed=0, options={"sample": 0})
    assert all((clean[name] == again[name]).all() for name in clean)
    assert not env.episode.turns


def test_default_context(capitals, tokenizer, monkeypatch):
    assert TokenEnv(capitals, tokenizer=tokenizer).setting.max_context == 1024
    monkeypatch.setattr(tokenizer, "model_max_length", 100)
    assert TokenEnv(capitals, tokenizer=tokenizer).setting.max_context == 100


def test_render(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer, render_mode="ansi")
    env.reset(options={"sample": 0})
    say(env, " Paris")
    assert env.render() == "user: The capital of France is\nassistant:  Paris"


def test_rewriting_templates_are_reported_for_conversations(guess, capitals, chat_tokenizer, monkeypatch):
    monkeypatch.setattr(
        chat_tokenizer,
        "chat_template",
        "{% for m in messages %}{{ m['content'] if loop.last else '...' + m['content'] }}<|im_end|>{% endfor %}",
    )
    with pytest.warns(TextGymWarning, match="rewrites earlier turns"):
        env = TokenEnv(guess, tokenizer=chat_tokenizer)
    textgym.check_env(env)
    TokenEnv(capitals, tokenizer=chat_tokenizer)


def test_vocabulary_is_the_action_space(capitals, tokenizer):
    env = TokenEnv(capitals, tokenizer=tokenizer)
    assert env.action_space == gym.spaces.Discrete(len(tokenizer))
    assert env.samples is not None
    assert env.task is capitals
    assert env.tokenizer is tokenizer
