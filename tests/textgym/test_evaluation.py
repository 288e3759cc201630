import json

import numpy as np
import pytest

import textgym
from textgym import Episode, Sample, Task, TokenVectorEnv, Turn
from textgym.errors import ConfigurationError
from textgym.evaluation import bootstrap_interval, play, summarise, wilson_interval


class Echo(Task):
    """Ten samples; the reward fails for those whose id is a multiple of four."""

    max_new_tokens = 4

    def samples(self, split):
        return [Sample(str(i), f"Say {i}", (str(i),)) for i in range(10)]

    def reward(self, episode):
        if int(episode.sample.id) % 4 == 0:
            raise RuntimeError("no")
        return float(len(episode.response))


def random_actions(venv, seed=0):
    rng = np.random.default_rng(seed)
    return lambda observation: rng.integers(venv.single_action_space.n, size=venv.num_envs)


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_each_sample_is_played_once_in_order(tokenizer, num_envs):
    venv = TokenVectorEnv(Echo(), num_envs, tokenizer=tokenizer)
    ended = []
    episodes = play(venv, random_actions(venv), on_episode=lambda episode: ended.append(episode.sample.id))
    assert [episode.sample.id for episode in episodes] == [str(i) for i in range(10)]
    assert sorted(ended) == sorted(str(i) for i in range(10))
    assert all(episode.stop_reason for episode in episodes)


def test_a_choice_of_samples_may_repeat_one(tokenizer):
    venv = TokenVectorEnv(Echo(), 2, tokenizer=tokenizer)
    episodes = play(venv, random_actions(venv), [7, 3, 7])
    assert [episode.sample.id for episode in episodes] == ["7", "3", "7"]
    assert len({id(episode) for episode in episodes}) == 3


def test_idle_environments_are_never_scored_and_stand_still(tokenizer):
    scored = []

    @textgym.reward
    def count(episode):
        scored.append(episode.sample.id)
        return 1.0

    venv = TokenVectorEnv(Echo(), 4, tokenizer=tokenizer, reward=count)
    token = tokenizer.encode("x")[0]
    observations = []

    def act(observation):
        observations.append({name: array.copy() for name, array in observation.items()})
        return np.full(4, token)

    play(venv, act, [0, 1, 2, 3, 4])
    assert sorted(scored) == ["0", "1", "2", "3", "4"]
    alone = observations[4:]
    assert len(alone) == 4
    assert all(np.array_equal(seen["input_ids"][1:], alone[0]["input_ids"][1:]) for seen in alone)


def test_chance_depends_on_the_seed_and_the_sample_alone(tokenizer, guess):
    venv = TokenVectorEnv(guess, 3, tokenizer=tokenizer)
    end = tokenizer.eos_token_id
    episodes = play(venv, lambda observation: np.full(3, end))
    assert [len(episode.responses) for episode in episodes] == [3] * 5
    again = play(TokenVectorEnv(guess, 2, tokenizer=tokenizer), lambda observation: np.full(2, end))
    assert [episode.turns for episode in again] == [episode.turns for episode in episodes]
    other = play(TokenVectorEnv(guess, 2, tokenizer=tokenizer), lambda observation: np.full(2, end), seed=1)
    assert [episode.turns for episode in other] != [episode.turns for episode in episodes]


def test_nothing_to_play_and_truncation_are_errors(tokenizer):
    venv = TokenVectorEnv(Echo(), 2, tokenizer=tokenizer)
    with pytest.raises(ConfigurationError, match="indices is empty"):
        play(venv, random_actions(venv), [])
    venv = TokenVectorEnv(Echo(), 2, tokenizer=tokenizer, max_episode_steps=2)
    with pytest.raises(ConfigurationError, match="max_episode_steps"):
        play(venv, random_actions(venv))


def test_unscored_episodes_are_counted_and_left_out(tokenizer):
    venv = TokenVectorEnv(Echo(), 4, tokenizer=tokenizer)
    episodes = play(venv, random_actions(venv))
    summary = summarise(venv.task, episodes)
    scored = [len(episode.response) for episode in episodes if int(episode.sample.id) % 4]
    assert summary["unscored"] == {"value": 3, "low": 3, "high": 3, "n": 10}
    assert summary["reward"]["n"] == 7
    assert summary["reward"]["value"] == pytest.approx(np.mean(scored))
    assert json.loads(json.dumps(summary)) == summary


def test_where_nothing_is_scored_there_are_no_figures():
    episode = Episode(Sample("a", "?"), [Turn("assistant", "x")], score_status="failed")
    assert list(summarise(Echo(), [episode])) == ["unscored"]


class Measured(Task):
    def samples(self, split):
        return []

    def metrics(self, episodes):
        lengths = [len(episode.response) for episode in episodes]
        answered = [length > 2 for length in lengths if length]
        metrics = {"length": np.mean(lengths), "longest": float(max(lengths)), "nothing": float("nan")}
        return metrics | ({"long": np.mean(answered)} if answered else {})


def episodes_of(*responses, reward=0.0):
    return [Episode(Sample(str(i), "?"), [Turn("assistant", r)], reward=reward) for i, r in enumerate(responses)]


def test_the_kind_of_a_metric_decides_on_its_interval():
    episodes = episodes_of("", "a", "bb", "ccc", "dddd", "eeeee")
    summary = summarise(Measured(), episodes)
    assert summary["long"] == {"value": 0.6, "low": wilson_interval(3, 5)[0], "high": wilson_interval(3, 5)[1], "n": 5}
    assert summary["length"]["n"] == 6
    assert summary["length"]["value"] == 2.5
    assert 0.5 < summary["length"]["low"] < 2.5 < summary["length"]["high"] < 4.5
    assert summary["longest"]["value"] == summary["longest"]["high"] == 5
    assert summary["longest"]["low"] < 5
    assert "nothing" not in summary


def test_intervals_are_reproducible_and_touch_no_global_generator():
    episodes = episodes_of("", "a", "bb", "ccc", "dddd", "eeeee")
    before = np.random.get_state()[1].copy()
    assert summarise(Measured(), episodes, seed=1) == summarise(Measured(), episodes, seed=1)
    assert summarise(Measured(), episodes, seed=1)["length"] != summarise(Measured(), episodes, seed=2)["length"]
    assert np.array_equal(np.random.get_state()[1], before)


def test_wilson_interval_against_published_values():
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3."""
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(29, 29)[1] == pytest.approx(1.0)


def test_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values.tolist(), np.random.default_rng(1))
    radius = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - radius, values.mean() + radius), abs=0.04)
