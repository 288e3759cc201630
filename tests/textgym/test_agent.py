"""Agents that misbehave: what they get is a failure of their own, with a reason."""

import json
from fractions import Fraction

import numpy as np
import pytest
from turns import go_on

import textgym
from textgym import Episode, Sample, Task
from textgym.agent import Conversation, Observation, Reply, replies_to
from textgym.errors import ConfigurationError


class Coin(Task):
    """Heads or tails, after the agent has said what it will be."""

    reward = staticmethod(lambda episode: float(episode.state["side"] == episode.response))

    def samples(self, split):
        return [Sample(str(i), "0 or 1?") for i in range(200)]

    def respond(self, episode, rng):
        if episode.response == "raise":
            raise KeyError("no such coin \ud800")
        episode.state["side"] = str(rng.integers(2))
        return "\ud800" if episode.response == "more" else None


class Says:
    def __init__(self, reply):
        self.reply, self.asked = reply, 0

    def act(self, observations):
        self.asked += len(observations)
        return [self.reply for _ in observations]


def conversations(n):
    textgym.register("demo/Coin-v0", task=Coin)
    setting = textgym.make("demo/Coin-v0", level="turn").unwrapped.setting
    return [Conversation(setting, 0, index) for index in range(n)]


def test_an_agents_seed_tells_nothing_of_the_tasks_chance():
    class Guesser:
        def act(self, observations):
            return [str(np.random.default_rng(o.seed).integers(2)) for o in observations]

    live = conversations(200)
    go_on(live, Guesser())
    assert 70 < sum(c.episode.reward for c in live) < 130
    assert len({c.observation().seed for c in live} | {c.episode.seed for c in live}) == 400


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (7, "not 7"),
        (Reply(5), "not 5"),
        (Reply(None), "not None"),
        (Reply("a", stop_reason=None), "one of eos"),
        (Reply("a", stop_reason="banana"), "'banana'"),
        (Reply("a", stop_reason="task"), "'task'"),
        (Reply("a", usage=None), "usage"),
        (Reply("a", usage={"tokens": "3"}), "'3'"),
        (Reply("a", usage={"tokens": None}), "None"),
        (Reply("a", usage={"tokens": float("nan")}), "nan"),
        (Reply(failure="ok"), "'ok'"),
        (Reply(failure=""), "says why"),
        (Reply(failure=False), "False"),
        (Reply(failure=ValueError("x")), "ValueError"),
        (Reply(failure="caf\ud800"), "caf?"),
        ("raise", "task: KeyError"),
    ],
)
def test_what_is_wrong_with_a_reply_is_its_episodes_failure(reply, reason):
    (conversation,) = conversations(1)
    agent = Says(reply)
    go_on([conversation], agent)
    assert conversation.is_over
    assert conversation.failed
    assert agent.asked == 1
    assert reason in conversation.episode.score_status
    json.dumps(conversation.episode.score_status, ensure_ascii=False).encode()


def test_one_episodes_failure_is_not_its_neighbours():
    class Mixed:
        def act(self, observations):
            return ["raise", Reply(5), "1", Reply(failure="down")][: len(observations)]

    live = conversations(4)
    go_on(live, Mixed())
    assert [c.failed for c in live] == [True, True, False, True]
    assert live[2].episode.score_status == "ok"


def test_half_characters_come_in_as_question_marks():
    (conversation,) = conversations(1)
    go_on([conversation], Says("more"))
    go_on([conversation], Says("\udc80!"))
    assert [turn.text for turn in conversation.episode.turns][1:3] == ["?", "?!"]


def test_amounts_are_plain_numbers():
    usage = {"a": np.int64(3), "b": np.float32(0.5), "c": Fraction(1, 2), "d": True}
    (reply,) = replies_to(Says(Reply("a", usage=usage)), observations(1))
    assert json.dumps(reply.usage) == '{"a": 3, "b": 0.5, "c": 0.5, "d": 1}'


def observations(n):
    return [Observation(Episode(sample), Coin()) for sample in Coin().samples("test")[:n]]


@pytest.mark.parametrize("found", ["ab", ["a"], ["a", "b", "c"], None, 5])
def test_answers_that_are_not_a_reply_each_are_failures(found):
    class Wrong:
        def act(self, observations):
            return found

    class Once(Wrong):
        def act(self, observations):
            return found if len(observations) > 1 else ["a"]

    assert all(reply.failure for reply in replies_to(Wrong(), observations(2))) or found == ["a"]
    assert [reply.text for reply in replies_to(Once(), observations(2))] == ["a", "a"]


@pytest.mark.parametrize("agent", [object(), Says, lambda observations: ["a"], {"type": "random"}])
def test_what_is_no_agent_is_refused(agent):
    with pytest.raises(ConfigurationError, match="is no agent"):
        replies_to(agent, observations(1))
