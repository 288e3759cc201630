"""Every promise that check_env checks has a mutant here that breaks it."""

import random

import gymnasium as gym
import numpy as np
import pytest

import textgym
from textgym import Sample, TextEnv, TokenEnv, check_env
from textgym.errors import ConfigurationError, EnvironmentCheckError
from textgym.streams import Streams


@pytest.fixture
def capitals_class(capitals):
    return type(capitals)


@pytest.fixture
def guess_class(guess):
    return type(guess)


@pytest.mark.parametrize("level", ["token", "text", "text with tokens"])
@pytest.mark.parametrize("name", ["capitals", "guess"])
def test_good_environments_pass(request, chat_tokenizer, level, name):
    task = request.getfixturevalue(name)
    if level == "token":
        env = TokenEnv(task, tokenizer=chat_tokenizer, max_context=200)
    else:
        env = TextEnv(task, tokenizer=chat_tokenizer if level != "text" else None)
    state = random.getstate()
    check_env(env)
    assert state == random.getstate()


@pytest.mark.parametrize("budget", [1, 2, 600])
def test_tiny_and_large_budgets_pass(capitals, tokenizer, budget):
    check_env(TokenEnv(capitals, tokenizer=tokenizer, max_new_tokens=budget))


@pytest.mark.parametrize("env_id", textgym.registered_ids())
def test_wrapped_and_registered_environments_pass(env_id, tokenizer):
    check_env(gym.make(env_id, tokenizer=tokenizer, max_new_tokens=128))  # it needs many tokens for a reply
    check_env(gym.make(env_id, level="turn"))


def refuse(env, match):
    with pytest.raises(EnvironmentCheckError, match=match) as caught:
        check_env(env)
    assert "What to do:" in str(caught.value) or "checker objects" in str(caught.value)


def test_only_our_environments():
    with pytest.raises(ConfigurationError, match="check_env takes a TokenEnv or a TextEnv"):
        check_env(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="got 3"):
        check_env(3)


@pytest.mark.parametrize("level", ["token", "text"])
class TestTasks:
    def env(self, level, task, tokenizer):
        return TokenEnv(task, tokenizer=tokenizer) if level == "token" else TextEnv(task)

    def test_duplicate_ids(self, level, capitals, chat_tokenizer):
        capitals.capitals = (("France", "Paris"), ("France", "Lyon"))
        refuse(self.env(level, capitals, chat_tokenizer), "two samples have the id 'France'")

    def test_global_randomness_in_the_answer(self, level, guess_class, chat_tokenizer):
        class Mutant(guess_class):
            def respond(self, episode, rng):
                return super().respond(episode, rng) and f"{random.random()}"

        refuse(self.env(level, Mutant(), chat_tokenizer), "same seed .* two different episodes")

    @pytest.mark.parametrize("draw", [random.random, np.random.random])
    def test_global_randomness_without_effect(self, level, guess_class, chat_tokenizer, draw):
        class Mutant(guess_class):
            def respond(self, episode, rng):
                draw()
                return super().respond(episode, rng)

        refuse(self.env(level, Mutant(), chat_tokenizer), "global random generators were used")

    def test_memory_in_the_task(self, level, guess_class, chat_tokenizer):
        class Mutant(guess_class):
            turns = 0

            def respond(self, episode, rng):
                self.turns += 1
                return super().respond(episode, rng) and f"Turn {self.turns}."

        refuse(self.env(level, Mutant(), chat_tokenizer), "same seed .* two different episodes")

    def test_a_conversation_without_end(self, level, guess_class, chat_tokenizer):
        class Mutant(guess_class):
            def respond(self, episode, rng):
                return ""

        env = TokenEnv(Mutant(), tokenizer=chat_tokenizer, max_context=10**5) if level == "token" else TextEnv(Mutant())
        refuse(env, "episode was not over after [14]00 steps")

    def test_metrics_that_are_no_numbers(self, level, capitals_class, chat_tokenizer):
        class Mutant(capitals_class):
            def metrics(self, episodes):
                return {"accuracy": float("nan")}

        refuse(self.env(level, Mutant(), chat_tokenizer), "metrics are .*nan")

    def test_scores_written_by_the_task(self, level, guess_class, chat_tokenizer):
        class Mutant(guess_class):
            def respond(self, episode, rng):
                episode.reward += 1.0
                return super().respond(episode, rng)

        refuse(self.env(level, Mutant(), chat_tokenizer), "rewards add up to")

    def test_wrong_references(self, level, capitals_class, chat_tokenizer):
        class Mutant(capitals_class):
            def reward(self, response, references):
                return -super().reward(response, references)

        refuse(self.env(level, Mutant(), chat_tokenizer), "references of the first 4 samples earn -4")


@pytest.mark.parametrize("level", ["token", "text"])
class TestRewards:
    def env(self, level, task, tokenizer, reward):
        if level == "token":
            return TokenEnv(task, tokenizer=tokenizer, reward=reward)
        return TextEnv(task, reward=reward)

    def test_random(self, level, capitals, chat_tokenizer):
        rng = np.random.default_rng()
        refuse(self.env(level, capitals, chat_tokenizer, lambda response: rng.random()), "two different episodes")

    def test_empty_replies_fail(self, level, capitals, chat_tokenizer):
        refuse(
            self.env(level, capitals, chat_tokenizer, lambda response: 1 / len(response)),
            "with empty replies .*ZeroDivisionError",
        )

    def test_long_replies_fail(self, level, capitals, chat_tokenizer):
        reward = lambda response: 1.0 if len(response) < 5 else float("nan")  # noqa: E731
        refuse(self.env(level, capitals, chat_tokenizer, reward), "with over-long replies .*not a finite number")

    def test_references_fail(self, level, capitals, chat_tokenizer):
        def reward(response, references):
            if response == references[0]:
                raise RuntimeError("too good")
            return 0.0

        refuse(self.env(level, capitals, chat_tokenizer, reward), "too good")

    def test_batches_in_another_order(self, level, capitals, chat_tokenizer):
        class Mutant(textgym.Reward):
            def score(self, episodes):
                return [textgym.Score(float(len(episode.response))) for episode in episodes][::-1]

        refuse(self.env(level, capitals, chat_tokenizer, Mutant()), "in one batch than one by one")


class TestStreams:
    """What a change of the environment itself might break."""

    def mutant(self, monkeypatch, task, tokenizer, method, change):
        original = getattr(Streams, method)

        def changed(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            return change(self, result)

        monkeypatch.setattr(Streams, method, changed)
        return TokenEnv(task, tokenizer=tokenizer, max_context=200)

    def test_retokenised(self, monkeypatch, guess, chat_tokenizer):
        def retokenise(streams, result):
            n = streams.lengths[0]
            text = chat_tokenizer.decode(streams.input_ids[0, :n])
            ids = chat_tokenizer.encode(text, add_special_tokens=False)[:n]
            streams.input_ids[0, : len(ids)] = ids
            return result

        refuse(self.mutant(monkeypatch, guess, chat_tokenizer, "advance", retokenise), "the stream has|tokens changed")

    def test_dirty_reset(self, monkeypatch, guess, chat_tokenizer):
        def smear(streams, result):
            streams.input_ids[0, 150] = getattr(streams, "dirt", 0)
            streams.dirt = int(streams.input_ids[0, 0]) + getattr(streams, "dirt", 0)
            return result

        refuse(
            self.mutant(monkeypatch, guess, chat_tokenizer, "begin", smear), "two different episodes|survived a reset"
        )

    def test_padding(self, monkeypatch, guess, chat_tokenizer):
        def pad(streams, result):
            streams.input_ids[0, streams.lengths[0] :] = chat_tokenizer.pad_token_id
            return result

        refuse(self.mutant(monkeypatch, guess, chat_tokenizer, "advance", pad), "not padded on the right with 0")

    def test_agent_mask_on_the_prompt(self, monkeypatch, guess, chat_tokenizer):
        def mark(streams, result):
            streams.agent_mask[0, 0] = 1
            return result

        refuse(self.mutant(monkeypatch, guess, chat_tokenizer, "begin", mark), "agent_mask is 1 on the prompt")

    def test_agent_mask_on_the_environments_message(self, monkeypatch, guess, chat_tokenizer):
        def mark(streams, result):
            if result.infos and not result.ended[0]:
                streams.agent_mask[0, streams.lengths[0] - 1] = 1
            return result

        refuse(
            self.mutant(monkeypatch, guess, chat_tokenizer, "advance", mark),
            "agent_mask is 1 on the environment's tokens",
        )

    def test_agents_tokens_not_marked(self, monkeypatch, guess, chat_tokenizer):
        def unmark(streams, result):
            streams.agent_mask[0] = 0
            return result

        refuse(self.mutant(monkeypatch, guess, chat_tokenizer, "advance", unmark), r"agent_mask 0")

    def test_step_turn(self, guess, chat_tokenizer):
        class Mutant(TokenEnv):
            def step_turn(self, ids):
                observation, rewards, *rest = super().step_turn(ids)
                return observation, rewards * 0.5, *rest

        refuse(Mutant(guess, tokenizer=chat_tokenizer), "step and step_turn disagree")

    def test_everything_forbidden(self, capitals_class, chat_tokenizer):
        class Mutant(capitals_class):
            def forbidden_tokens(self, episode, vocabulary):
                return list(vocabulary.values())

        refuse(TokenEnv(Mutant(), tokenizer=chat_tokenizer), "with 0 tokens allowed")

    def test_missing_record(self, capitals, chat_tokenizer):
        class Mutant(TokenEnv):
            def step(self, action):
                *rest, info = super().step(action)
                info.pop("episode_record", None)
                return *rest, info

        refuse(Mutant(capitals, tokenizer=chat_tokenizer), "has no episode_record")

    def test_a_reward_that_is_no_float(self, capitals, chat_tokenizer):
        class Mutant(TokenEnv):
            def step(self, action):
                observation, reward, *rest = super().step(action)
                return observation, np.array([reward]), *rest

        refuse(Mutant(capitals, tokenizer=chat_tokenizer), "a step's reward was array")

    def test_gymnasiums_rules(self, capitals, chat_tokenizer):
        class Mutant(TokenEnv):
            def reset(self, *, seed=None, options=None):
                observation, info = super().reset(seed=seed, options=options)
                return {**observation, "input_ids": observation["input_ids"].astype(np.float32)}, info

        refuse(Mutant(capitals, tokenizer=chat_tokenizer), "Gymnasium's checker objects")

    def test_sb3s_rules(self, capitals, chat_tokenizer):
        class Mutant(TokenEnv):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.action_space = gym.spaces.Discrete(len(chat_tokenizer) - 1, start=1)

        refuse(Mutant(capitals, tokenizer=chat_tokenizer), "Stable-Baselines3's checker objects")


def test_samples_without_references_pass(chat_tokenizer):
    class Free(textgym.Task):
        reward = staticmethod(lambda response: float(len(response)))

        def samples(self, split):
            return [Sample("a", "Say anything.")]

    check_env(TokenEnv(Free(), tokenizer=chat_tokenizer))
