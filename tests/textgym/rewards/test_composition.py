import copy
import itertools
import math
import pickle
import re
import time

import faulty_rewards
import numpy as np
import pytest
from scoring import episode, number, scores_of, turn, values

import textgym
from textgym import Episode, Reward, Sample, Score, Task, Turn
from textgym.errors import EnvironmentCheckError, RewardError
from textgym.rewards import gate
from textgym.rewards.composition import RunningMoments, Shaping, ZScore, clip
from textgym.rewards.parallel import Parallel, Timeout

# ------------------------------------------------------------------------- clip


def test_clip():
    clipped = clip(number, -1.0, 2.5)
    assert values(clipped, "-3", "-1", "0.5", "7") == [-1.0, -1.0, 0.5, 2.5]
    assert scores_of(clipped, "7")[0].parts == {"number": 7.0}
    assert values(clip(number, -math.inf, 0), "-1e9", "1") == [-1e9, 0.0]
    assert values(2 * clipped + 1, "7") == [6.0]


def test_what_fails_is_not_clipped():
    (score,) = scores_of(clip(number, 0, 1), "x")
    assert score.value is None
    assert "could not convert" in score.status


def test_clip_is_asked_when_its_reward_is():
    clipped = clip(turn, 0, 1)
    assert clipped.whens == {"turn"}
    assert clipped.score_at("episode", [episode("5")])[0] == Score(0.0)
    assert clipped.score_at("turn", [episode("5")])[0].value == 1.0
    with pytest.raises(RewardError, match="a clip needs rewards asked at the same moment, not episode, turn"):
        clip(turn + textgym.reward(number), 0, 1)


@pytest.mark.parametrize(("low", "high"), [(1, 0), (math.nan, 1), (0, math.nan)])
def test_clip_needs_two_bounds_in_order(low, high):
    with pytest.raises(RewardError, match="low is at most high"):
        clip(number, low, high)


# ---------------------------------------------------------------------- z-score


def test_running_moments_are_those_of_all_numbers_at_once():
    rng = np.random.default_rng(0)
    numbers = 1e4 + rng.normal(size=500)
    moments = RunningMoments()
    for batch in np.split(numbers, [1, 2, 2, 50, 51, 300]):
        moments.update(batch)
    assert moments.count == 500
    assert moments.mean == pytest.approx(numbers.mean(), rel=1e-14)
    assert moments.variance == pytest.approx(numbers.var(), rel=1e-9)


def test_z_scores_take_in_the_batch_first():
    reward = ZScore(number)
    assert values(reward, "1", "3") == [-1.0, 1.0]
    assert values(reward, "5") == [pytest.approx((5 - 3) / math.sqrt(8 / 3))]
    assert vars(reward.moments) == {"count": 3, "mean": pytest.approx(3.0), "variance": pytest.approx(8 / 3)}
    assert scores_of(reward, "3")[0].parts == {"number": 3.0}


def test_a_single_episode_and_equal_ones_do_not_divide_by_zero():
    reward = ZScore(number)
    assert values(reward, "0.1") == [0.0]
    for _ in range(50):
        assert values(reward, "0.1", "0.1", "0.1") == [0.0] * 3
    assert values(ZScore(number), "0", "0") == [0.0, 0.0]
    assert values(reward, "0.2")[0] > 5


def test_failed_scores_do_not_enter():
    reward = ZScore(number)
    scores = scores_of(reward, "1", "x", "3", "nan")
    assert [score.value for score in scores] == [-1.0, None, 1.0, None]
    assert "could not convert" in scores[1].status
    assert reward.moments.count == 2
    assert values(reward, "y") == [None]
    assert reward.moments.count == 2


def test_z_scores_are_clipped():
    reward = ZScore(number, clip=0.5)
    assert values(reward, "1", "3", "2") == [-0.5, 0.5, 0.0]
    with pytest.raises(RewardError, match="positive number of standard deviations"):
        ZScore(number, clip=0)


def test_moments_are_saved_and_restored():
    reward, other = ZScore(number), ZScore(number)
    values(reward, "1", "3")
    assert reward.state_dict() == {"count": 2, "mean": 2.0, "variance": 1.0}
    other.load_state_dict(reward.state_dict())
    assert values(other, "4") == values(reward, "4")
    assert other.state_dict() == reward.state_dict()
    for bad in ({}, {"count": 2, "mean": math.nan, "variance": 1.0}, {"count": 2, "mean": 0.0, "variance": -1.0}):
        with pytest.raises(RewardError, match="count, mean, variance"):
            other.load_state_dict(bad)


def test_z_scores_have_one_moment_and_one_process():
    assert ZScore(turn).whens == {"turn"}
    with pytest.raises(RewardError, match="a z-score needs rewards asked at the same moment"):
        ZScore(Shaping(number))
    for send in (pickle.dumps, lambda reward: Parallel(reward, 2, kind="process")):
        with pytest.raises(RewardError, match="cannot be sent to another process"):
            send(ZScore(faulty_rewards.length))


def test_check_env_says_that_a_z_score_depends_on_history(capitals, tokenizer):
    env = textgym.TokenEnv(capitals, reward=ZScore(lambda response: len(response)), tokenizer=tokenizer)
    with pytest.raises(EnvironmentCheckError, match="a reward depends on the episode alone"):
        textgym.check_env(env)


# ---------------------------------------------------------------------- shaping

GAMMA = 0.9


class Letters(Task):
    """Two turns of at most two letters; the game for which every reply is tried."""

    max_new_tokens = 2

    def samples(self, split):
        return [Sample("a", "Go:", ("ab", "b"))]

    def respond(self, episode, rng):
        return "More:" if len(episode.responses) < 2 else None

    @staticmethod
    def reward(episode):
        return sum({"a": 1.0, "b": 2.5}.get(letter, 0.0) for letter in "".join(episode.responses)) * (
            len(episode.responses) == 2 and episode.responses[0] != episode.responses[1]
        )


def potential(episode, references):
    """Anything at all that depends on the episode alone, and is not 0 before the first token."""
    return 0.7 + len(episode.responses) ** 2 + 3.0 * sum("b" in text for text in episode.responses) - 5.0 * (
        episode.response == references[0]
    )  # fmt: skip


def play(env, tokens):
    """The rewards of an episode in which the agent writes these tokens; None where it needs more or fewer."""
    env.reset(seed=0)
    rewards = []
    for token in tokens:
        _, reward, terminated, _, info = env.step(token)
        rewards.append(reward)
        if terminated:
            return (np.array(rewards), info) if len(rewards) == len(tokens) else None
    return None


def all_episodes(env, tokenizer):
    """Every possible episode of the game with three tokens: two letters and the end."""
    letters = [tokenizer.convert_tokens_to_ids(token) for token in ("a", "b")]
    for n in range(1, 5):
        for tokens in itertools.product([*letters, tokenizer.eos_token_id], repeat=n):
            played = play(env, tokens)
            if played is not None:
                yield tokens, played


def discounted(rewards):
    return float(rewards @ GAMMA ** np.arange(len(rewards)))


@pytest.fixture
def returns_of(tokenizer):
    def returns(reward):
        env = textgym.TokenEnv(Letters(), reward=reward, tokenizer=tokenizer)
        return {tokens: discounted(rewards) for tokens, (rewards, _) in all_episodes(env, tokenizer)}

    return returns


def ranking(returns):
    return sorted(returns, key=lambda tokens: (round(returns[tokens], 9), tokens))


def test_shaping_changes_every_return_by_the_same_number(returns_of):
    plain = returns_of(Letters.reward)
    shaped = returns_of(textgym.reward(Letters.reward) + Shaping(potential, GAMMA))
    assert len(plain) == 25  # a turn of two letters uses its budget up, and ends the episode: 4 + 3 * 7
    assert len(set(plain.values())) > 8
    for tokens, value in plain.items():
        assert shaped[tokens] == pytest.approx(value - 0.7), tokens
    assert ranking(shaped) == ranking(plain)


def test_a_potential_as_a_bonus_would_change_the_ranking(returns_of):
    """So the game can tell."""
    plain = returns_of(Letters.reward)
    for bonus in (
        textgym.reward(potential, when="token"),
        Shaping(potential, gamma=1.0),  # another discount than the agent's
    ):
        assert ranking(returns_of(textgym.reward(Letters.reward) + bonus)) != ranking(plain)


def test_the_sum_telescopes(tokenizer):
    env = textgym.TokenEnv(Letters(), reward=Shaping(potential), tokenizer=tokenizer)
    a, b = (tokenizer.convert_tokens_to_ids(token) for token in "ab")
    rewards, info = play(env, [a, tokenizer.eos_token_id, b, b])
    phi = [0.7, 0.7 + 1, 0.7 + 1, 0.7 + 4 + 3, 0.0]
    assert rewards == pytest.approx(np.diff(phi))
    assert info["reward_parts"] == {"shaping": pytest.approx(-0.7)}
    assert info["score_status"] == "ok"
    assert not env.episode.state


def test_shaping_goes_with_its_episode_through_vector_environments_and_copies(tokenizer):
    task, reward = Letters(), Shaping(potential, GAMMA)
    venv = textgym.TokenVectorEnv(task, 3, reward=reward, tokenizer=tokenizer)
    env = textgym.TokenEnv(task, reward=Shaping(potential, GAMMA), tokenizer=tokenizer)
    rng = np.random.default_rng(1)
    choices = [tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("b"), tokenizer.eos_token_id]
    actions = rng.choice(choices, size=(20, 3))
    venv.reset(seed=0)
    together = np.stack([venv.step(row)[1] for row in actions])
    for column in range(3):
        env.reset(seed=0)
        for step, token in enumerate(actions[:, column]):
            _, value, terminated, _, _ = env.step(token)
            assert together[step, column] == pytest.approx(value)
            if terminated:
                env.reset(seed=0)
    env.reset(seed=0)
    env.step(choices[0])
    twin = copy.deepcopy(env)
    going_on = [choices[2], choices[1]]
    assert [env.step(token)[1] for token in going_on] == [twin.step(token)[1] for token in going_on]


def test_two_shapings_of_one_episode_do_not_meet(tokenizer):
    env = textgym.TokenEnv(Letters(), reward=2 * Shaping(potential) - Shaping(potential), tokenizer=tokenizer)
    b = tokenizer.convert_tokens_to_ids("b")
    _, info = play(env, [b, tokenizer.eos_token_id, b, b])
    assert info["episode_record"]["reward"] == pytest.approx(-0.7)
    assert info["reward_parts"] == {"shaping": pytest.approx(-0.7), "shaping_2": pytest.approx(-0.7)}


def test_at_turn_level_a_turn_is_one_step():
    env = textgym.TextEnv(Letters(), reward=Shaping(potential))
    env.reset(seed=0)
    phi = [0.7, 0.7 + 1 + 3 - 5, 0.0]
    assert env.step("ab")[1] == pytest.approx(phi[1] - phi[0])
    assert env.step("b")[1] == pytest.approx(phi[2] - phi[1])


def test_a_truncated_episode_keeps_the_potential_of_its_last_state(tokenizer):
    venv = textgym.TokenVectorEnv(
        Letters(), 1, reward=Shaping(potential, GAMMA), tokenizer=tokenizer, max_episode_steps=1
    )
    venv.reset(seed=0)
    _, rewards, _, truncated, _ = venv.step(np.array([tokenizer.convert_tokens_to_ids("a")]))
    assert truncated[0]
    assert rewards[0] == pytest.approx(GAMMA * 1.7 - 0.7)


def test_finished_episodes_are_worth_minus_the_first_potential():
    finished = Episode(Sample("a", "Go:", ("ab",)), [Turn("assistant", "ab")], stop_reason="eos")
    shaping = Shaping(potential, GAMMA)
    assert shaping.score([finished])[0].value == -0.7
    mixed = 10 * shaping + textgym.reward(lambda response: len(response), name="length")
    (score,) = mixed.score([finished])
    assert score.value == pytest.approx(2 - 7)
    assert score.parts == {"shaping": pytest.approx(-0.7), "length": 2.0}


def test_a_failed_potential_fails_its_episode_alone(tokenizer):
    def picky(response):
        if response == "b":
            raise ValueError("no b")
        return len(response)

    venv = textgym.TokenVectorEnv(Letters(), 2, reward=Shaping(picky), tokenizer=tokenizer)
    venv.reset(seed=0)
    a, b = (tokenizer.convert_tokens_to_ids(token) for token in "ab")
    _, rewards, _, _, infos = venv.step(np.array([a, b]))
    assert rewards.tolist() == [1.0, 0.0]
    assert infos["score_status"][1] == "shaping: picky: ValueError: no b"
    _, _, terminated, _, infos = venv.step(np.array([a, a]))
    assert terminated.all()
    assert infos["final_info"]["score_status"].tolist() == ["ok", "shaping: picky: ValueError: no b"]
    assert infos["final_info"]["reward_parts"]["shaping"][0] == 0.0


def test_wrong_shapings():
    for gamma in (0, 1.1, -0.5, math.nan):
        with pytest.raises(RewardError, match="the agent's discount"):
            Shaping(potential, gamma)
    with pytest.raises(RewardError, match="a potential needs rewards asked at the same moment"):
        Shaping(turn + textgym.reward(number))
    for combine in (lambda: gate(Shaping(potential), textgym.reward(number)), lambda: Parallel(Shaping(potential), 2)):
        with pytest.raises(RewardError, match="not episode, token"):
            combine()
    assert Shaping(potential).score_at("episode", [episode("x")])[0].value is None


# ------------------------------------------------------- faults in environments


class WrongLength(Reward):
    """Forgets one episode where one is too long."""

    def score(self, episodes):
        return [Score(1.0) for episode in episodes if len(episode.response) < 2]


def fails(fault):
    """A reward of 1.0 for replies of one letter, that fails on longer ones."""
    if fault == "wrong length":
        return WrongLength()

    def reward(response):
        if len(response) < 2:
            return 1.0
        if fault == "raise":
            raise RuntimeError("service down")
        if fault == "hang":
            time.sleep(faulty_rewards.NEVER)
        return {"nan": math.nan, "inf": math.inf, "nothing": None, "text": "good"}[fault]

    return Timeout(reward, 0.05) if fault == "hang" else textgym.reward(reward, name="reward")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("raise", "reward: RuntimeError: service down"),
        ("hang", "reward: no score within 0.05 s"),
        ("nan", "reward: returned nan, not a finite number"),
        ("inf", "reward: returned inf, not a finite number"),
        ("nothing", r"reward: RewardError: a reward function returns a number .* not None \(NoneType\)\."),
        ("text", r"reward: RewardError: a reward function returns a number .* not 'good' \(str\)\."),
        ("wrong length", "wrong_length: RewardError: returned 0 scores for 1 episodes; it must return one each."),
    ],
)
def test_no_episode_is_lost_and_its_status_says_why(fault, status, tokenizer):
    a, end = tokenizer.convert_tokens_to_ids("a"), tokenizer.eos_token_id
    venv = textgym.TokenVectorEnv(Letters(), 4, reward=fails(fault), tokenizer=tokenizer)
    venv.reset(seed=0)
    script = np.array([[a, a, a, a], [end, end, end, end], [a, a, a, end], [end, a, end, end]])
    ended = []
    for tokens in script:
        _, rewards, terminated, truncated, infos = venv.step(tokens)
        assert np.isfinite(rewards).all()
        assert not truncated.any()
        for row in np.flatnonzero(terminated).tolist():
            final = infos["final_info"]
            ended.append((row, rewards[row], final["score_status"][row], final["episode_record"]["score_status"][row]))
            assert bool(final["metrics"]) == (final["score_status"][row] == "ok") or final["metrics"] == {}
    assert [row for row, *_ in ended] == [3, 0, 1, 2]
    for row, reward, said, recorded in ended:
        assert said == recorded
        if row == 1:
            assert reward == 0.0
            assert re.fullmatch(status, said)
        else:
            assert (reward, said) == (1.0, "ok")


def test_faults_after_each_token(tokenizer):
    """At token level: the step says so at once, and the episode at its end."""

    @textgym.reward(when="token")
    def no_b(response):
        if response.endswith("b"):
            raise ValueError("b")
        return 1.0

    env = textgym.TokenEnv(Letters(), reward=Timeout(no_b, 5), tokenizer=tokenizer)
    a, b = (tokenizer.convert_tokens_to_ids(token) for token in "ab")
    env.reset(seed=0)
    steps = [env.step(token) for token in (b, tokenizer.eos_token_id, a, a)]
    assert [step[1] for step in steps] == [0.0, 0.0, 1.0, 1.0]
    assert steps[0][4] == {"score_status": "no_b: ValueError: b"}
    assert steps[3][4]["score_status"] == steps[3][4]["episode_record"]["score_status"] == "no_b: ValueError: b"
    assert steps[3][4]["metrics"] == {}
