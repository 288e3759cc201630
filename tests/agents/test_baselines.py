"""Agents that do not learn: what they say, and that playing by turns is playing by tokens."""

import pytest
import torch
import transformers
from turns import go_on

import textgym
from textgym import Episode, Sample, Task, Turn
from textgym.agent import Conversation, Observation, Reply
from textgym.agents import CausalLMPolicy
from textgym.agents.baselines import AlwaysAbstain, BestOfN, CausalLMAgent, RandomAgent, ReferenceAgent
from textgym.agents.playing import play_policy
from textgym.benchmarking import benchmark
from textgym.errors import ConfigurationError, PromptTooLongError
from textgym.rendering import load_tokenizer
from textgym.rewards import Abstain


class Plain(Task):
    reward = staticmethod(len)
    max_new_tokens = 6

    def samples(self, split):
        return [Sample(str(i), f"Number {i} is", (f" {i}",)) for i in range(5)]


def observations(task=None, n=5, seed=0):
    task = task or Plain()
    return [Observation(Episode(sample), task, seed + i) for i, sample in enumerate(task.samples("test")[:n])]


def test_random_replies_differ_and_repeat_with_their_seed():
    agent = RandomAgent()
    replies = agent.act(observations())
    assert replies == agent.act(observations())
    assert replies[2:4] == agent.act(observations()[2:4])
    assert len(set(replies)) == 5
    assert all(replies)


def test_abstaining_and_reference():
    assert AlwaysAbstain().act(observations(n=2)) == [" I don't know."] * 2
    assert [reply.text for reply in ReferenceAgent().act(observations(n=2))] == [" 0", " 1"]
    without = Observation(Episode(Sample("a", "b")), Plain())
    assert "no reply 1" in ReferenceAgent().act([without])[0].failure


def test_the_reference_plays_the_demonstration_of_a_conversation(tmp_path):
    agents = {"reference": ReferenceAgent(), "random": RandomAgent()}
    summary = benchmark(agents, ["textgym/Dialogue-v0"], out=tmp_path, episodes=12, seeds=1)
    figures = {agent: by_task["textgym/Dialogue-v0"] for agent, by_task in summary["agents"].items()}
    assert figures["reference"]["metric"]["value"] > 0.5
    assert figures["random"]["metric"]["value"] == 0.0


@pytest.mark.parametrize("env", ["textgym/KnowledgeQA-v0", "textgym/DialogueReply-v0", "textgym/Dialogue-v0"])
def test_playing_by_turns_is_playing_by_tokens(env):
    """The built-in model's greedy replies and scores, at both levels."""
    venv = textgym.make_vec(env, num_envs=8, split="test").unwrapped
    indices = list(range(0, len(venv.samples), len(venv.samples) // 12))[:12]
    policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0)
    by_tokens = play_policy(policy, venv, indices)
    agent = CausalLMAgent()
    setting = textgym.make(env, level="turn", split="test").unwrapped.setting
    conversations = [Conversation(setting, 0, index) for index in indices]
    while live := [c for c in conversations if not c.is_over]:
        go_on(live, agent)
    for token, conversation in zip(by_tokens, conversations, strict=True):
        turn = conversation.episode
        assert turn.turns == token.turns
        assert turn.stop_reason == token.stop_reason
        assert turn.reward == pytest.approx(token.reward, abs=1e-6)
        assert turn.score_status == token.score_status


def test_what_is_drawn_does_not_depend_on_the_neighbours():
    agent = CausalLMAgent(deterministic=False)
    together = agent.act(observations())
    torch.manual_seed(5)
    assert [agent.act([observation])[0] for observation in observations()] == together
    assert agent.act(observations(seed=100)) != together
    state = torch.get_rng_state()
    agent.act(observations())
    assert torch.equal(torch.get_rng_state(), state)


def test_conversations_about_several_tasks_are_refused():
    with pytest.raises(ConfigurationError, match="one task"):
        CausalLMAgent().act([*observations(n=1), *observations(Plain(), n=1)])


class Counting:
    """Says 0, 1, 2, ... by seed's order, and fails on the third question."""

    def __init__(self, fails=()):
        self.fails, self.n = fails, 0

    def act(self, observations):
        replies = []
        for _ in observations:
            failure = "down" if self.n in self.fails else None
            replies.append(Reply(str(self.n), usage={"tokens": 1}, failure=failure))
            self.n += 1
        return replies


def test_the_best_of_n_is_the_rewards():
    agent = BestOfN(Counting(), lambda response: -abs(int(response) - 6), n=4)
    best = agent.act(observations(n=2))  # of 0 to 3, and of 4 to 7
    assert [reply.text for reply in best] == ["3", "6"]
    assert best[0].usage == {"tokens": 4}


def test_the_best_of_n_takes_the_tasks_own_reward_where_none_is_given():
    class Longest(Plain):
        reward = staticmethod(lambda response: float(response == "2"))

    assert [reply.text for reply in BestOfN(Counting(), n=4).act(observations(Longest(), n=1))] == ["2"]


def test_the_best_of_n_bears_failures():
    def reward(response):
        if response == "3":
            raise ValueError("three")
        return float(response)

    assert BestOfN(Counting(fails={2}), reward, n=4).act(observations(n=1))[0].text == "1"
    failed = BestOfN(Counting(fails=range(9)), reward, n=2).act(observations(n=1))[0]
    assert "none of 2" in failed.failure
    assert "down" in failed.failure
    with pytest.raises(ConfigurationError):
        BestOfN(Counting(), reward, n=0)


def test_the_best_of_n_sees_the_whole_conversation():
    seen = []

    def reward(episode):
        seen.append([turn.text for turn in episode.turns])
        return 0.0

    episode = Episode(Sample("a", "b"), [Turn("assistant", "c"), Turn("user", "d")])
    BestOfN(Counting(), reward, n=2).act([Observation(episode, Plain())])
    assert seen == [["c", "d", "0"], ["c", "d", "1"]]
    assert len(episode.turns) == 2


class Shop(Task):
    """Two turns; the reward looks at what the task noted in the first, and at how the episode ended."""

    stop = "\n"

    def samples(self, split):
        return [Sample("a", "b")]

    def respond(self, episode, rng):
        episode.state["price"] = 3
        return "3" if len(episode.responses) == 1 else None


def test_the_best_of_n_sees_the_episode_as_it_would_end():
    seen = []

    def reward(episode):
        seen.append((episode.response, episode.stop_reason, episode.state["price"]))
        return float(len(seen))

    class Says:
        def act(self, observations):
            return [Reply("yes\nno"), Reply("ye", "length")]

    episode = Episode(Sample("a", "b"), [Turn("assistant", "c"), Turn("user", "3")], state={"price": 3})
    best = BestOfN(Says(), n=2).act([Observation(episode, Shop(), reward=textgym.reward(reward))])
    assert seen == [("yes", "task", 3), ("ye", "length", 3)]
    assert best[0].text == "ye"


def test_the_best_of_n_takes_the_reward_that_it_is_judged_by(tmp_path):
    textgym.register("demo/Plain-v0", task=Plain, reward=lambda response: -abs(float(response) - 2))
    figures = benchmark({"best": BestOfN(Counting(), n=4)}, ["demo/Plain-v0"], out=tmp_path, episodes=1, seeds=1)
    assert figures["agents"]["best"]["demo/Plain-v0"]["reward"]["value"] == 0.0


def test_what_is_no_agent_cannot_be_asked():
    with pytest.raises(ConfigurationError, match="is no agent"):
        BestOfN({"type": "random"})


def test_a_conversation_that_is_too_long_is_named():
    class Long(Plain):
        def samples(self, split):
            return [Sample("long", "word " * 2000)]

    with pytest.raises(PromptTooLongError, match="'long'"):
        CausalLMAgent().act(observations(Long(), n=1))


@pytest.fixture
def model(tokenizer):
    return small_model(tokenizer)


def small_model(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def test_a_model_and_its_tokenizer_are_taken(model, tokenizer):
    agent = CausalLMAgent(model, tokenizer, max_context=64, temperature=0.5)
    assert len(agent.act(observations())) == 5
    assert "temperature=0.5" in repr(agent)


def test_agents_describe_what_they_do(model, tokenizer, tmp_path):
    agents = [
        RandomAgent(),
        RandomAgent(tokenizer),
        ReferenceAgent(),
        CausalLMAgent(model, tokenizer),
        CausalLMAgent(model, tokenizer, max_context=64),
        CausalLMAgent(model, load_tokenizer(None)),
        BestOfN(Counting(), Abstain(wrong=-1.5)),
        BestOfN(Counting(), Abstain(wrong=-4)),
    ]
    texts = [repr(agent) for agent in agents]
    assert len(set(texts)) == len(agents)
    assert not any(" at 0x" in text for text in texts)
    assert repr(RandomAgent()) == texts[0]


def test_other_weights_in_the_same_folder_are_another_agent(model, tokenizer, tmp_path):
    def saved():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return repr(CausalLMAgent(tmp_path))

    before = saved()
    assert (str(tmp_path) in before, "PosixPath" in before) == (True, False)
    assert saved() == before
    with torch.no_grad():
        model.model.norm.weight += 1
    assert saved() != before
