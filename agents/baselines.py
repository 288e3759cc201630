"""Agents that do not learn, for comparison: at turn level, see :mod:`textgym.agent`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.utils import get_device

from textgym.agent import Agent, Observation, Reply, check_agent, replies_to, total_usage
from textgym.agents.playing import play_policy
from textgym.agents.policies import CausalLMPolicy, source_and_tokenizer
from textgym.agents.seq2seq import policy_class_of
from textgym.conversation import add_scores, ask
from textgym.episode import Episode, Sample, Turn
from textgym.errors import ConfigurationError
from textgym.evaluation import episode_seed
from textgym.rendering import Renderer, load_tokenizer
from textgym.rewards import Reward, Score, as_reward
from textgym.rewards.core import WHENS
from textgym.setting import stop_position, stop_strings
from textgym.task import Task
from textgym.texts import described
from textgym.vector_env import TokenVectorEnv

__all__ = ["AlwaysAbstain", "BestOfN", "CausalLMAgent", "RandomAgent", "ReferenceAgent"]


class RandomAgent:
    """Says random tokens, as many as the task allows: what an untrained network would say.

    Args:
        tokenizer: Whose tokens; the built-in model's where None.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = load_tokenizer(tokenizer)

    def __repr__(self) -> str:
        return f"RandomAgent({described(self.tokenizer)})"

    def act(self, observations: Sequence[Observation]) -> list[str]:
        """A reply to each conversation."""
        return [self._reply(observation) for observation in observations]

    def _reply(self, observation: Observation) -> str:
        rng = np.random.default_rng(observation.seed)
        ids = rng.integers(len(self.tokenizer), size=observation.task.max_new_tokens)
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


class AlwaysAbstain:
    """Says that it does not know, whatever it is asked.

    Args:
        text: How.
    """

    def __init__(self, text: str = " I don't know.") -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"AlwaysAbstain({self.text!r})"

    def act(self, observations: Sequence[Observation]) -> list[str]:
        """A reply to each conversation."""
        return [self.text] * len(observations)


class ReferenceAgent:
    """Says what the first reference says or, without one, the task's demonstration; fails where there is neither.

    Where there are several turns, it plays the demonstration.
    """

    def __repr__(self) -> str:
        return "ReferenceAgent()"

    def act(self, observations: Sequence[Observation]) -> list[Reply]:
        """A reply to each conversation."""
        return [self._reply(observation) for observation in observations]

    def _reply(self, observation: Observation) -> Reply:
        sample = observation.episode.sample
        replies: Sequence[str] | None = sample.references[:1]
        if observation.task.is_multi_turn or not replies:
            replies = observation.task.demonstration(sample)
        if not replies or observation.turn >= len(replies):
            return Reply(failure=f"reference: there is no reply {observation.turn + 1} for this sample")
        return Reply(replies[observation.turn])


class CausalLMAgent:
    """A transformers language model, causal or an encoder-decoder, as it is.

    Replies are tokenised, begun and ended as in the token environments, and decoded incrementally (an encoder-decoder's
    are not), all conversations side by side.

    Args:
        model: A name, a path or a model; the built-in one where None.
        tokenizer: Its tokenizer; None: the one of that name or path.
        deterministic: Greedy decoding. Otherwise tokens are drawn; a conversation's by its own seed.
        max_context: Tokens of a conversation; a longer one fails. None: what the tokenizer says, and at most 1,024.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        **policy_kwargs: Of :class:`~textgym.agents.CausalLMPolicy`, or of :class:`~textgym.agents.Seq2SeqLMPolicy`:
            ``temperature``, ``dtype`` and so on.

    Raises:
        ModelError, TokenizerError: They cannot be had, or do not fit each other.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        deterministic: bool = True,
        max_context: int | None = None,
        device: str = "auto",
        **policy_kwargs: Any,
    ) -> None:
        source, self.tokenizer = source_and_tokenizer(model, tokenizer)
        self.name = None if model is None else source if isinstance(source, str) else type(source).__name__
        self.model = policy_class_of(source).load_model(source)
        self.deterministic, self.max_context = deterministic, max_context
        self.policy_kwargs, self.device = policy_kwargs, device
        self._policies: dict[int, CausalLMPolicy] = {}  # by context

    def __repr__(self) -> str:
        settings = {"deterministic": self.deterministic, "max_context": self.max_context, **self.policy_kwargs}
        what = [repr(self.name), described(self.model), described(self.tokenizer)]
        return f"CausalLMAgent({', '.join(what)}, {', '.join(f'{k}={described(v)}' for k, v in settings.items())})"

    def act(self, observations: Sequence[Observation]) -> list[Reply]:
        """A reply to each conversation."""
        prompts = _Prompts(observations, self.tokenizer)
        options: dict[str, Any] = {"tokenizer": self.tokenizer, "max_context": self.max_context, "split": "all"}
        venv = TokenVectorEnv(prompts, num_envs=len(observations), copy=False, **options)
        for index, observation in enumerate(observations):
            venv.setting.begin_with(index, venv.setting.renderer.conversation_ids(observation.episode))
        policy = self._policy(venv)
        if self.deterministic:
            episodes = play_policy(policy, venv)
        else:
            with policy.sampling_by_row([observation.seed for observation in observations]):
                episodes = play_policy(policy, venv, deterministic=False)
        return [Reply(episode.response, episode.stop_reason or "eos") for episode in episodes]

    def _policy(self, venv: TokenVectorEnv) -> CausalLMPolicy:
        context = venv.setting.max_context
        if context not in self._policies:
            policy = policy_class_of(self.model)(
                venv.single_observation_space,
                venv.single_action_space,
                lambda _: 0.0,
                model=self.model,
                **self.policy_kwargs,
            )
            self._policies[context] = policy.to(get_device(self.device))
        return self._policies[context]


class _Prompts(Task):
    """Conversations under way as samples, about which the next reply is wanted."""

    reward = staticmethod(lambda: 0.0)  # type: ignore[assignment]

    def __init__(self, observations: Sequence[Observation], tokenizer: Any) -> None:
        tasks = {id(observation.task): observation.task for observation in observations}
        if len(tasks) != 1:
            raise ConfigurationError("the conversations that an agent is shown at a time are about one task.")
        (task,) = tasks.values()
        stop = stop_strings(task)
        self.stop = (*stop, *Renderer(tokenizer).message_stops) if task.is_multi_turn else stop
        self.max_new_tokens = task.max_new_tokens
        self._samples = [observation.episode.sample for observation in observations]

    def samples(self, split: str) -> list[Sample]:
        return self._samples


class BestOfN:
    """Asks another agent several times, and says what a reward finds best.

    In a conversation of several turns the reward sees it as if it ended with the reply.

    Args:
        agent: Who is asked; one that replies at random.
        reward: A reward or a plain function. None: the one by which the reply is then judged as well, so that it shows
            what could be had and not what an agent without references can do.
        n: How often.

    Raises:
        ConfigurationError: ``n`` is less than 1, or the agent is none.
    """

    def __init__(self, agent: Agent, reward: Reward | Callable[..., Any] | None = None, n: int = 8) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigurationError(f"n={n!r}; it is a whole number, at least 1.")
        check_agent(agent)
        self.agent, self.reward, self.n = agent, None if reward is None else as_reward(reward), n
        if hasattr(agent, "at_a_time"):
            self.at_a_time = max(1, agent.at_a_time // n)

    def __repr__(self) -> str:
        return f"BestOfN({described(self.agent)}, {self.reward!r}, n={self.n})"

    def act(self, observations: Sequence[Observation]) -> list[Reply]:
        """A reply to each conversation; a failure where none could be scored."""
        asked = [replace(o, seed=episode_seed(o.seed, i)) for o in observations for i in range(self.n)]
        replies = replies_to(self.agent, asked)
        scores = self._scores(asked, replies)
        groups = [slice(start, start + self.n) for start in range(0, len(asked), self.n)]
        return [self._best(replies[group], scores[group]) for group in groups]

    def _scores(self, asked: Sequence[Observation], replies: Sequence[Reply]) -> list[tuple[float, str]]:
        """The worth of each conversation if it ended with the reply, and whether it could be had."""
        episodes = [_ended(o, reply) for o, reply in zip(asked, replies, strict=True)]
        answered = [row for row, reply in enumerate(replies) if reply.failure is None]
        found: dict[int, list[Score]] = {}
        reward = self.reward or asked[0].reward or as_reward(asked[0].task.reward)  # type: ignore[arg-type]
        for when in WHENS:
            if when in reward.whens:
                ask(reward, when, answered, episodes, found)
        return [
            add_scores(episode, found.get(row, ())) if reply.failure is None else (0.0, reply.failure)
            for row, (episode, reply) in enumerate(zip(episodes, replies, strict=True))
        ]

    def _best(self, replies: Sequence[Reply], scores: Sequence[tuple[float, str]]) -> Reply:
        scored = [(value, -place) for place, (value, status) in enumerate(scores) if status == "ok"]
        if not scored:
            return Reply(failure=f"none of {self.n} replies could be scored: {scores[0][1]}")
        return replace(replies[-max(scored)[1]], usage=total_usage(reply.usage for reply in replies))


def _ended(observation: Observation, reply: Reply) -> Episode:
    """The conversation as it would be if it ended with the reply."""
    episode, task = observation.episode, observation.task
    stop = stop_position(reply.text, stop_strings(task))
    reason = reply.stop_reason if stop is None else "stop_string"
    if task.is_multi_turn and reason not in ("length", "context"):
        reason = "task"
    turns = [*episode.turns, Turn("assistant", reply.text[:stop])]
    return Episode(episode.sample, turns, reason, episode.seed, state=copy.deepcopy(episode.state))
