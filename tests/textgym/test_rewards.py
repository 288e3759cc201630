import copy
import math
import re

import numpy as np
import pytest

import textgym
from textgym import Episode, Reward, Sample, Score, Turn
from textgym.errors import RewardError
from textgym.rewards import Abstain, Contains, Matches, Rouge, Shaping, Timeout, ZScore, as_reward, clip, gate
from textgym.rewards.abstain import exact_match, normalize_answer, token_f1


def episode(response, references=("Paris",), **meta):
    return Episode(Sample("a", "Capital of France?", references, meta), [Turn("assistant", response)])


def values(reward, *responses):
    return [score.value for score in reward.score([episode(response) for response in responses])]


length = textgym.reward(lambda response: len(response), name="length")
vowels = textgym.reward(lambda response: sum(c in "aeiou" for c in response), name="vowels")


def test_functions_take_any_arguments_by_name():
    assert values(as_reward(lambda: 1), "x") == [1.0]
    assert values(as_reward(lambda response, references: response == references[0]), "Paris", "Rome") == [1.0, 0.0]
    everything = as_reward(lambda **given: len(given))
    assert values(everything, "x") == [5.0]
    with_default = as_reward(lambda response, weight=2.0: weight * len(response))
    assert values(with_default, "abc") == [6.0]
    seen = as_reward(lambda prompt, meta, episode: float(prompt == episode.sample.prompt and meta["level"] == 3))
    assert seen.score([episode("x", level=3)])[0].value == 1.0


def test_functions_may_return_numpy_scalars_and_scores():
    assert values(as_reward(lambda response: np.float32(0.5)), "x") == [0.5]
    assert values(as_reward(lambda response: np.array(2)), "x") == [2.0]
    assert as_reward(lambda response: Score(1.0, {"a": 1.0})).score([episode("x")])[0].parts == {"a": 1.0}


def test_names_and_moments():
    @textgym.reward(when="turn")
    def politeness(response):
        return 1.0

    class ExactMatch(Reward):
        def score(self, episodes):
            return [Score(0.0) for _ in episodes]

    assert (politeness.name, politeness.when, politeness.whens) == ("politeness", "turn", {"turn"})
    assert as_reward(lambda: 0.0).name == "reward"
    assert ExactMatch().name == "exact_match"
    assert "politeness" in repr(politeness)


def test_what_is_no_reward():
    with pytest.raises(RewardError, match="asks for 'answer'"):
        as_reward(lambda answer: 1.0)
    with pytest.raises(RewardError, match="Abstain is a class; pass an instance"):
        as_reward(Abstain)
    with pytest.raises(RewardError, match="not 3"):
        as_reward(3)


def test_arithmetic():
    both = 0.5 * length + 2 * vowels - 1
    assert values(both, "paris", "x") == [0.5 * 5 + 2 * 2 - 1, -0.5]
    assert both.score_at("episode", [episode("paris")])[0].parts == {"length": 5.0, "vowels": 2.0, "constant": 1.0}
    assert values(-length / 2, "abcd") == [-2.0]
    assert values(1 - length, "abcd") == [-3.0]
    assert values(length * vowels, "paris") == [10.0]
    assert values(sum([length, vowels]), "paris") == [7.0]
    assert both.whens == {"episode"}
    assert "length" in repr(both)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Abstain(wrong=-1.5), Abstain(wrong=-4.0)),
        (0.5 * length, 0.7 * length),
        (length * vowels, length * length),
        (gate(length, vowels), gate(length, vowels, threshold=2.0)),
        (gate(length, vowels), gate(vowels, length)),
        (clip(length, 0, 1), clip(length, 0, 2)),
        (ZScore(length), ZScore(length, clip=3.0)),
        (Shaping(length), Shaping(length, gamma=0.9)),
        (Timeout(length, 1.0), Timeout(length, 2.0)),
        (Contains(["a"]), Contains(["b"])),
        (Rouge("rouge1"), Rouge("rouge1", use_stemmer=True)),
        (Matches("a" * 300), Matches("a" * 301)),
    ],
    ids=lambda reward: repr(reward)[:30],
)
def test_rewards_are_told_apart_by_how_they_show_themselves(one, other):
    assert repr(one) != repr(other)
    assert " at 0x" not in repr(one) + repr(other)


def test_a_reward_that_has_scored_shows_itself_as_before():
    reward = ZScore(length)
    before = repr(reward)
    values(reward, "a", "bc")
    assert repr(reward) == before


def test_two_leaves_of_one_name_are_both_logged():
    assert (length + length).score([episode("ab")])[0].parts == {"length": 2.0, "length_2": 2.0}


def test_gates():
    gated = gate(length, vowels, threshold=3, otherwise=-1.0)
    assert values(gated, "paris", "x") == [2.0, -1.0]
    assert gated.score([episode("paris")])[0].parts == {"length": 5.0, "vowels": 2.0}


def test_moments_are_asked_one_by_one():
    turn = textgym.reward(lambda response: 1.0, name="turn", when="turn")
    mixed = length + 10 * turn
    assert mixed.whens == {"episode", "turn"}
    assert mixed.score_at("turn", [episode("ab")])[0] == Score(10.0, {"turn": 1.0})
    assert mixed.score_at("episode", [episode("ab")])[0] == Score(2.0, {"length": 2.0})
    assert mixed.score_at("token", [episode("ab")])[0] == Score(0.0)
    assert mixed.score([episode("ab")])[0] == Score(12.0, {"turn": 1.0, "length": 2.0})
    for combine in (lambda: length * turn, lambda: gate(length, turn)):
        with pytest.raises(RewardError, match="same moment"):
            combine()


@pytest.mark.parametrize(
    ("scores", "status"),
    [
        (lambda episodes: [Score(1.0)] * (len(episodes) + 1), "returned 2 scores for 1 episodes"),
        (lambda episodes: [], "returned 0 scores for 1 episodes"),
        (lambda episodes: [1.0] * len(episodes), r"returned 1.0 \(float\), not a textgym.Score"),
        (lambda episodes: [Score(math.nan)] * len(episodes), "returned nan, not a finite number"),
        (lambda episodes: [Score(-math.inf)] * len(episodes), "returned -inf"),
        (lambda episodes: [Score(None)] * len(episodes), "returned no value"),
        (lambda episodes: [Score(1.0, status="timeout")] * len(episodes), "timeout"),
        (lambda episodes: 1 / 0, "broken: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_scored_is_marked(scores, status):
    class Broken(Reward):
        def score(self, episodes):
            return scores(episodes)

    for reward in (Broken(), Broken() + length, 2 * Broken(), gate(length, Broken())):
        (score,) = reward.score_at("episode", [episode("x")])
        assert score.value is None
        assert re.search(status, score.status)


def test_one_failure_is_not_its_neighbours():
    picky = as_reward(lambda response: 1 / len(response))
    scores = picky.score_at("episode", [episode("ab"), episode(""), episode("abcd")])
    assert [score.value for score in scores] == [0.5, None, 0.25]
    assert (picky + length).score_at("episode", [episode("")])[0].parts == {"length": 0.0}


def test_a_reward_is_its_own_deep_copy():
    reward = Abstain()
    assert copy.deepcopy(reward) is reward
    assert copy.deepcopy({"reward": reward})["reward"] is reward


def test_normalisation_is_squads():
    assert normalize_answer("  The  Eiffel-Tower, in “Paris”! ") == "eiffeltower in paris"
    assert exact_match("the Paris.", ("Rome", "paris"))
    assert not exact_match("Paris", ())
    assert token_f1("city of Paris", ("Paris",)) == pytest.approx(0.5)
    assert token_f1("", ("",)) == 1.0
    assert token_f1("x", ()) == 0.0


def test_abstain():
    reward = Abstain(correct=2.0, abstain=0.5, wrong=-3.0)
    assert values(reward, "Paris.", "I don't know!", "Rome", "") == [2.0, 0.5, -3.0, -3.0]
    assert reward.outcome(episode("unknown", ("unknown",))) == "correct"
    assert values(Abstain(phrases=["pass"]), "Pass.", "I don't know") == [0.0, -1.5]


def test_abstaining_in_any_words_is_right_where_there_is_no_answer():
    reward = Abstain()
    without_answer = [
        episode(reply, ("I don't know",)) for reply in ("I don't know", "unanswerable.", "Rome", "I know")
    ]
    assert [score.value for score in reward.score(without_answer)] == [1.0, 1.0, -1.5, -1.5]
    assert [reward.f1(e) for e in without_answer] == [1.0, 1.0, 0.0, 0.0]
    assert reward.has_answer(episode("", ("Paris",)).sample)
    assert not reward.has_answer(without_answer[0].sample)


def test_an_answer_that_is_partly_right_earns_its_part():
    reward = Abstain(correct=1.0, abstain=0.25, wrong=-1.0, partial_credit=True)
    assert values(reward, "Paris", "city of Paris", "Rome", "unknown") == pytest.approx([1.0, 0.0, -1.0, 0.25])
    assert reward.outcome(episode("city of Paris")) == "wrong"
    assert values(Abstain(), "city of Paris") == [-1.5]
    assert reward.score([episode("I know", ("I don't know",))])[0].value == -1.0
