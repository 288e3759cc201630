import random

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import textgym
from textgym import TokenEnv, TokenVectorEnv
from textgym.errors import ConfigurationError


def same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) or (isinstance(a, np.ndarray) and a.dtype == object):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


def random_tokens(tokenizer, n_steps, n_envs, seed=0, p_end=0.15):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(len(tokenizer), size=(n_steps, n_envs))
    tokens[rng.random(tokens.shape) < p_end] = tokenizer.eos_token_id
    return tokens


def vector_of_token_envs(n, task, **kwargs):
    return SyncVectorEnv([lambda: TokenEnv(task, **kwargs)] * n, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("kind", ["one turn", "conversation", "token reward", "failing"])
def test_same_trajectory_as_a_vector_of_token_envs(capitals, guess, chat_tokenizer, kind):
    task = guess if kind == "conversation" else capitals
    reward = {
        "token reward": textgym.reward(lambda response: len(response) / 10, when="token"),
        "failing": lambda response: 1.0 if len(response) % 2 else 1 / 0,
    }.get(kind)
    options = {"reward": reward, "tokenizer": chat_tokenizer, "max_context": 100}
    ours = TokenVectorEnv(task, 5, **options)
    theirs = vector_of_token_envs(5, task, **options)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert same(ours.reset(seed=7), theirs.reset(seed=7))
    for tokens in random_tokens(chat_tokenizer, 200, 5):
        for mine, yours in zip(ours.step(tokens), theirs.step(tokens), strict=True):
            assert same(mine, yours)
    masks = zip(ours.call("action_masks"), theirs.call("action_masks"), strict=True)
    assert all(np.array_equal(mine, yours) for mine, yours in masks)


def test_row_i_is_the_token_env_of_seed_plus_i(capitals, tokenizer):
    venv = TokenVectorEnv(capitals, 4, tokenizer=tokenizer)
    obs, infos = venv.reset(seed=10)
    env = TokenEnv(capitals, tokenizer=tokenizer)
    for i in range(4):
        single, info = env.reset(seed=10 + i)
        assert infos["sample_id"][i] == info["sample_id"]
        assert all((obs[name][i] == single[name]).all() for name in single)
    again, _ = venv.reset(seed=[13, 12, 11, 10])
    assert (again["input_ids"] == obs["input_ids"][::-1]).all()
    assert same(venv.reset(seed=np.int64(10))[0], obs)


def test_all_that_end_together_are_scored_in_one_call(capitals, tokenizer):
    class Counting(textgym.Reward):
        def __init__(self):
            self.calls = []

        def score(self, episodes):
            self.calls.append(len(episodes))
            return [textgym.Score(1.0) for _ in episodes]

    counting = Counting()
    venv = TokenVectorEnv(capitals, 6, reward=counting, tokenizer=tokenizer)
    venv.reset(seed=0)
    venv.step(np.array([0, 0, 0, 300, 300, 300]))
    venv.step(np.array([300, 300, 300, 0, 300, 300]))
    assert counting.calls == [3, 1]


def test_final_observation_and_info_are_of_the_episode_that_ended(capitals, tokenizer):
    venv = TokenVectorEnv(capitals, 2, tokenizer=tokenizer, copy=False)
    obs, _ = venv.reset(seed=0)
    prompt = obs["input_ids"][0].copy()
    n = int(obs["attention_mask"][0].sum())
    obs, _, terminated, truncated, infos = venv.step(np.array([tokenizer.eos_token_id, 300]))
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    final = infos["final_obs"][0]
    assert infos["final_obs"][1] is None
    assert (final["input_ids"][:n] == prompt[:n]).all()
    assert final["input_ids"][n] == tokenizer.eos_token_id
    assert final["agent_mask"].sum() == 1
    assert obs["agent_mask"][0].sum() == 0
    assert infos["final_info"]["episode_record"]["stop_reason"][0] == "eos"
    kept = final["input_ids"].copy()
    for tokens in random_tokens(tokenizer, 30, 2):
        venv.step(tokens)
    assert (final["input_ids"] == kept).all()


def test_copies_and_views(capitals, tokenizer):
    for copy in (True, False):
        venv = TokenVectorEnv(capitals, 2, tokenizer=tokenizer, copy=copy)
        first, _ = venv.reset(seed=0)
        before = first["attention_mask"].sum()
        second, *_ = venv.step(np.array([300, 300]))
        assert (first["attention_mask"].sum() == before) == copy
        assert (first["input_ids"] is second["input_ids"]) == (not copy)


def test_samples_and_masked_resets(capitals, tokenizer):
    venv = TokenVectorEnv(capitals, 4, tokenizer=tokenizer)
    obs, infos = venv.reset(options={"samples": [3, 2, 1, 0]})
    assert infos["sample_id"].tolist() == ["Italy", "Japan", "Germany", "France"]
    obs, *_ = venv.step(np.full(4, 300))
    mask = np.array([True, False, False, True])
    again, infos = venv.reset(options={"reset_mask": mask, "samples": [0, None, None, 0]})
    assert again["agent_mask"].sum(axis=1).tolist() == [0, 1, 1, 0]
    assert (again["input_ids"][1:3] == obs["input_ids"][1:3]).all()
    assert infos["_sample_id"].tolist() == mask.tolist()
    for options in ({"samples": [0]}, {"reset_mask": [True]}, {"samples": 3}, {"samples": [9, 0, 0, 0]}):
        with pytest.raises(ConfigurationError, match=r"options\['"):
            venv.reset(options=options)
    with pytest.raises(ConfigurationError, match="seed needs one value"):
        venv.reset(seed=[1, 2])


def test_truncation_by_a_step_limit(capitals, tokenizer):
    venv = TokenVectorEnv(capitals, 2, tokenizer=tokenizer, max_episode_steps=3)
    venv.reset(seed=0)
    for _ in range(2):
        *_, terminated, truncated, infos = venv.step(np.array([300, 300]))
        assert not truncated.any()
        assert not infos
    _, _rewards, terminated, truncated, infos = venv.step(np.array([300, tokenizer.eos_token_id]))
    assert truncated.tolist() == [True, False]
    assert terminated.tolist() == [False, True]
    assert infos["final_obs"][0]["agent_mask"].sum() == 3
    assert infos["final_info"]["_response"].tolist() == [False, True]
    *_, truncated, _ = venv.step(np.array([300, 300]))
    assert not truncated.any()


def test_misuse(capitals, tokenizer):
    venv = TokenVectorEnv(capitals, 2, tokenizer=tokenizer)
    with pytest.raises(ResetNeeded):
        venv.step(np.array([0, 0]))
    venv.reset(seed=0)
    narrow = np.array([0, -1], np.int8)
    for actions in ([0], [0, -1], [0, 10**6], [0, 2**64 - 1], narrow, [0.5, 1.0], ["a", "b"]):
        with pytest.raises(InvalidAction):
            venv.step(np.array(actions))
    with pytest.raises(ConfigurationError, match="num_envs=0"):
        TokenVectorEnv(capitals, 0, tokenizer=tokenizer)
    with pytest.raises(AttributeError):
        venv.get_attr("no_such_thing")


def test_attributes(guess, chat_tokenizer):
    venv = TokenVectorEnv(guess, 3, tokenizer=chat_tokenizer, render_mode="ansi")
    assert venv.task is guess
    assert venv.tokenizer is chat_tokenizer
    assert len(venv.samples) == 5
    assert venv.get_attr("render_mode") == ("ansi",) * 3
    assert venv.episodes == [None] * 3
    venv.reset(options={"samples": [0, 1, 2]})
    assert venv.render() == ("user: Guess 0.", "user: Guess 1.", "user: Guess 2.")
    assert venv.action_masks().shape == (3, len(chat_tokenizer))
    assert venv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("name", ["capitals", "guess"])
def test_a_million_random_tokens(request, chat_tokenizer, name):
    """Half a million for each kind of task, with every special token among them."""
    n, steps = 512, 1000
    venv = TokenVectorEnv(
        request.getfixturevalue(name), n, tokenizer=chat_tokenizer, max_context=96, max_new_tokens=24, copy=False
    )
    venv.reset(seed=0)
    rng = np.random.default_rng(0)
    state = random.getstate(), np.random.get_state()[1].tolist()
    ended = 0
    for _ in range(steps):
        obs, rewards, terminated, truncated, _infos = venv.step(rng.integers(len(chat_tokenizer), size=n))
        ended += int(terminated.sum())
        assert np.isfinite(rewards).all()
        assert not truncated.any()
    assert ended > steps
    assert (obs["input_ids"][obs["attention_mask"] == 0] == 0).all()
    assert state == (random.getstate(), np.random.get_state()[1].tolist())
