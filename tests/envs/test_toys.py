import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textgym
from textgym import Episode, Turn
from textgym.agents import PPO
from textgym.agents.playing import play_policy
from textgym.envs.toys import Copy, Identity, Increasing, increasing_share, matching_share
from textgym.errors import DataError
from textgym.evaluation import summarise

TOYS = (Identity, Increasing, Copy)


@pytest.mark.parametrize(
    ("text", "wanted", "share"),
    [
        ("", "bbbb", 0),
        (" b b b", "bbbb", 3 / 4),
        ("bbb", "bbbb", 3 / 4),  # white space says nothing
        (" b x b b", "bbbb", 3 / 4),
        (" b b b x b", "bbbbbb", 4 / 5),
        (" b d a a", "bdaa", 1),
        (" b a d a", "bdaa", 2 / 4),  # place by place
        (" b d a a b b", "bdaa", 4 / 6),
        (" bdxx", "bdaa", 2 / 4),
    ],
)
def test_matching_share(text, wanted, share):
    assert matching_share(text, wanted, 4) == share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        (" 8 9 10 11 12", 1),
        ("8, 30, 31, 310, 2000", 1),
        (" 8 9 7 10", 3 / 5),  # 7 is not, and 10 is larger than 9
        (" 7 8", 1 / 5),
        (" 8 9 10 11 12 and 13", 6 / 7),
        (" 9a eight -8 8.5", 0),
        (" 8 " + 5000 * "9", 1 / 5),
    ],
)
def test_increasing_share(text, share):
    assert increasing_share(text, above=7, n=5) == share


def test_a_token_earns_what_it_adds():
    task = Identity()
    sample = next(sample for sample in task.samples("train") if sample.meta["letter"] == "b")
    episode = Episode(sample, [Turn("assistant", " b b")], reward_parts={"progress": 0.25})
    worse = Episode(sample, [Turn("assistant", " b b b b xxxx")], reward_parts={"progress": 1.0})
    assert [score.value for score in task.reward.score([episode, worse])] == [0.25, -0.5]


def stepped(env, sample, text):
    """The rewards of a reply, token by token, and the last info."""
    env.reset(seed=0, options={"sample": sample})
    _, rewards, terminated, _, info = env.step_turn(env.unwrapped.setting.renderer.reply_ids(text))
    assert terminated
    return rewards, info


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("builtin", [True, False])
def test_the_full_reply_earns_one_little_by_little_with_any_tokenizer(toy, builtin, tokenizer):
    textgym.register("tests/Toy-v0", task=toy)
    env = textgym.make("tests/Toy-v0", tokenizer=None if builtin else tokenizer).unwrapped
    for index, sample in enumerate(env.samples):
        rewards, info = stepped(env, index, sample.references[0])
        assert rewards.sum() == pytest.approx(1)
        assert (rewards >= 0).all()
        assert len(rewards[rewards > 0]) >= 4
        assert info["metrics"] == {"solved": 1.0}
        assert info["episode_record"]["reward_parts"] == {"progress": pytest.approx(1)}


@pytest.mark.parametrize("toy", TOYS)
def test_what_is_wrong_costs(toy):
    textgym.register("tests/Toy-v0", task=toy)
    env = textgym.make("tests/Toy-v0").unwrapped
    rewards, info = stepped(env, 3, env.samples[3].references[0] + " x y")
    assert 0.5 < rewards.sum() < 1
    assert rewards.min() < 0
    assert info["metrics"] == {"solved": 0.0}


def test_a_weighted_sum_still_adds_up(tokenizer):
    textgym.register("tests/Toy-v0", task=Identity)
    length = textgym.reward(lambda response: len(response) / 100, name="length")
    env = textgym.make("tests/Toy-v0", reward=0.5 * Identity().reward + length).unwrapped
    rewards, info = stepped(env, 0, " a a a a")
    assert rewards.sum() == pytest.approx(0.5 + 0.08)
    assert info["reward_parts"] == {"progress": pytest.approx(1), "length": 0.08}


def test_samples():
    assert [sample.prompt for sample in Identity().samples("test")][6:10] == [
        "a a a a a a a",
        "a a a a a a a a",
        "b",
        "b b",
    ]
    assert Identity().samples("train") == Identity().samples("validation") == Identity().samples("test")
    assert Increasing().samples("test")[7].prompt == "7:"
    assert Increasing().samples("test")[7].references == (" 8 9 10 11 12",)
    assert len(Increasing().samples("train")) == 15
    splits = {split: {sample.prompt for sample in Copy().samples(split)} for split in ("train", "validation", "test")}
    wanted = {" ".join(letters) + ":" for letters in itertools.product("abcd", repeat=4)}
    assert set().union(*splits.values()) == wanted == {sample.prompt for sample in Copy().samples("all")}
    assert sum(map(len, splits.values())) == 256
    assert len(splits["train"]) > 180
    assert min(map(len, splits.values())) > 15


@pytest.mark.parametrize("toy", TOYS)
def test_demonstrations_begin_well_and_most_stop_too_early(toy):
    task = toy()
    samples = task.samples("train")
    shares = [task.measure(sample, *task.demonstration(sample)) for sample in samples]
    assert all(sample.references[0].startswith(task.demonstration(sample)[0]) for sample in samples)
    assert 0 < min(shares) < max(shares) == 1
    assert sum(share < 1 for share in shares) > len(shares) / 2


@pytest.mark.parametrize("toy", TOYS)
def test_an_unknown_split_is_named(toy):
    with pytest.raises(DataError, match=f"{toy.__name__} has no split 'dev'; it has train, validation, test and all"):
        toy().samples("dev")


def test_metrics_of_no_episodes():
    assert Identity().metrics([]) == {}


@pytest.mark.parametrize("toy", TOYS)
def test_checkers_pass(toy, tokenizer):
    textgym.register("tests/Toy-v0", task=toy)
    textgym.check_env(textgym.make("tests/Toy-v0"))
    textgym.check_env(textgym.make("tests/Toy-v0", tokenizer=tokenizer))
    textgym.check_env(textgym.make("tests/Toy-v0", level="turn"))


def test_ppo_learns_identity_from_scratch(tokenizer):
    textgym.register("tests/Identity-v0", task=Identity)
    venv = textgym.make_vec("tests/Identity-v0", num_envs=128, tokenizer=tokenizer, max_context=32)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=128, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    agent = PPO(
        "CausalLMPolicy", venv, n_steps=8, batch_size=256, n_epochs=4, learning_rate=6e-3, gamma=0.0, seed=0,
        policy_kwargs={"model": LlamaForCausalLM(config)}, device="cpu",
    )  # fmt: skip

    def reward():
        indices = np.arange(64) % 4
        episodes = play_policy(agent.policy, venv, indices.tolist(), deterministic=False)
        return summarise(venv.task, episodes)["reward"]["value"]

    before = reward()
    agent.learn(7 * 128 * 8)
    assert before < 0.1
    assert reward() > 0.4
