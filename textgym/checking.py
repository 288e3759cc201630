"""The conformance suite: does an environment, with its task, its data and its reward, keep textgym's promises?"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError, EnvironmentCheckError, TextGymWarning
from textgym.rewards import Score
from textgym.text_env import TextEnv
from textgym.token_env import TokenEnv

__all__ = ["check_env"]

MAX_TURNS = 100
MAX_TOKENS = 400
MAX_FULL_TURNS = 10
N_EPISODES = 4
N_REFERENCES = 16
NONSENSE = "Zqx jvw kkf."


class Step(NamedTuple):
    """One step of a recorded episode."""

    action: Any
    observation: Any
    reward: float
    terminated: bool
    info: dict[str, Any]


class Play(NamedTuple):
    """A recorded episode; the observation and info of its reset come first."""

    observation: Any
    info: dict[str, Any]
    steps: list[Step]
    episode: Episode


def check_env(env: gymnasium.Env, *, seed: int = 0) -> None:
    """Checks a textgym environment, at token or at turn level, and what it is made of.

    Runs Gymnasium's checker and, at token level, SB3's, and on top: the same seed gives the same episode; the global
    random generators are untouched; nothing of an episode survives a reset; the agent's ids stand in the stream as
    they were chosen; ``step`` and ``step_turn`` agree; empty and over-long replies are scored; rewards, metrics and
    infos are finite and of plain types; a reward scores an episode alike alone and in a batch; references score at
    least as high, on average, as corrupted ones; ids of samples are unique.

    Args:
        env: What ``textgym.make`` gives, or a :class:`~textgym.TokenEnv` or :class:`~textgym.TextEnv`. Wrappers are
            taken off. Its episode is lost.
        seed: Of the episodes that are played.

    Raises:
        EnvironmentCheckError: A promise is broken; the message says which, how it showed, and what to look for.
        ConfigurationError: This is no environment of textgym.
    """
    bare = env.unwrapped if isinstance(env, gymnasium.Env) else env
    if not isinstance(bare, (TokenEnv, TextEnv)):
        raise ConfigurationError(f"check_env takes a TokenEnv or a TextEnv, wrapped or not; got {env!r}.")
    before = _global_generators()
    _check_samples(bare.samples)
    _check_determinism(bare, seed)
    _check_resets(bare, seed)
    if isinstance(bare, TokenEnv):
        _check_streams(bare, seed)
        _check_step_turn(bare, seed)
        _check_masks(bare, seed)
    _check_replies(bare, seed)
    _check_batches(bare, seed)
    _check_references(bare, seed)
    _require(
        _same(before, _global_generators()),
        "the global random generators were used",
        "take randomness from the generator that respond gets (at token level, env.np_random) and from nothing else",
    )
    _check_as_others_do(bare)


def _require(kept: bool, what: str, remedy: str) -> None:
    if not kept:
        raise EnvironmentCheckError(f"{what}. What to do: {remedy}.")


def _check_samples(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        _require(
            sample.id not in seen, f"two samples have the id {sample.id!r}", "give every sample of the data its own id"
        )
        seen.add(sample.id)


def _check_determinism(env: TokenEnv | TextEnv, seed: int) -> None:
    for s in range(seed, seed + N_EPISODES):
        first, second = _play(env, s), _play(env, s)
        _require(
            _same(first[:3], second[:3]),
            f"the same seed ({s}) and the same actions gave two different episodes: {_difference(first, second)}",
            "a task keeps what it remembers in episode.state and draws from respond's rng; a reward depends on the "
            "episode alone",
        )


def _check_resets(env: TokenEnv | TextEnv, seed: int) -> None:
    """Plays different episodes between two equal resets."""
    clean = env.reset(seed=seed)
    for s in range(seed, seed + N_EPISODES):
        _play(env, s + 1)
        _require(
            _same(clean, env.reset(seed=seed)) and not env.episode.turns and not env.episode.state,
            "something of the last episode survived a reset",
            "a task keeps nothing of an episode but in episode.state; an environment clears its whole stream",
        )


def _check_streams(env: TokenEnv, seed: int) -> None:
    """Append-only, padded with 0, and the agent's ids where they were chosen."""
    for s in range(seed, seed + N_EPISODES):
        play = _play(env, s)
        last = play.observation
        _require(not last["agent_mask"].any(), "agent_mask is 1 on the prompt", "mark the agent's own tokens only")
        for step in play.steps:
            _check_growth(last, step)
            last = step.observation


def _check_growth(last: dict[str, np.ndarray], step: Step) -> None:
    new = step.observation
    n, grown = int(last["attention_mask"].sum()), int(new["attention_mask"].sum())
    _require(
        all((new[name][:n] == last[name][:n]).all() for name in last) and grown > n,
        f"the first {n} tokens changed with the next action",
        "never tokenise or render again: the observation after an action is the one before plus the new tokens",
    )
    _require(
        new["input_ids"][n] == step.action and new["agent_mask"][n] == 1,
        f"the agent chose the id {step.action}, and the stream has {new['input_ids'][n]} "
        f"(agent_mask {new['agent_mask'][n]})",
        "append the very id, and mark it as the agent's",
    )
    _require(
        not new["agent_mask"][n + 1 :].any(), "agent_mask is 1 on the environment's tokens", "mark the agent's own only"
    )
    _require(
        bool(new["attention_mask"][:grown].all()) and not any(new[name][grown:].any() for name in new),
        "the observation is not padded on the right with 0",
        "clear ids and masks beyond the stream",
    )


def _check_step_turn(env: TokenEnv, seed: int) -> None:
    for s in range(seed, seed + N_EPISODES):
        stepped = _play(env, s)
        env.reset(seed=s)
        done = 0
        while done < len(stepped.steps):
            observation, rewards, terminated, _, info = env.step_turn([step.action for step in stepped.steps[done:]])
            steps = stepped.steps[done : done + len(rewards)]
            done += len(rewards)
            agree = [step.reward for step in steps] == list(rewards) and terminated == steps[-1].terminated
            agree &= _same(observation, steps[-1].observation)
            agree &= all(_same(info[name], value) for name, value in steps[-1].info.items() if name != "score_status")
            _require(agree, f"step and step_turn disagree with seed {s}", "define step_turn by step, as TokenEnv does")


def _check_masks(env: TokenEnv, seed: int) -> None:
    env.reset(seed=seed)
    masks = env.action_masks()
    _require(
        masks.shape == (len(env.tokenizer),) and masks.dtype == bool and bool(masks.any()),
        f"action_masks gave {masks.dtype} of shape {masks.shape} with {int(masks.sum())} tokens allowed",
        f"it is bool, of shape ({len(env.tokenizer)},), and leaves at least one token; see the task's forbidden_tokens",
    )


def _check_replies(env: TokenEnv | TextEnv, seed: int) -> None:
    for name, replies in _replies(env):
        for s in range(seed, seed + N_EPISODES):
            play = _play(env, s, replies)
            what = f"with {name} replies to sample {play.episode.sample.id!r}"
            _require(
                play.steps[-1].terminated,
                f"{what} the episode was not over after {len(play.steps)} steps",
                "end it after a number of turns: task.respond returns None",
            )
            for step in play.steps:
                _check_step(step, what)
            _check_final(play, what)


def _check_step(step: Step, what: str) -> None:
    status = step.info.get("score_status", "ok")
    _require(
        status == "ok",
        f"{what} the reward failed: {status}",
        "score every reply, whatever it is; a reward that cannot score it should say what such a reply is worth",
    )
    _require(
        isinstance(step.reward, float) and math.isfinite(step.reward),
        f"{what} a step's reward was {step.reward!r}",
        "return a finite float",
    )


def _check_final(play: Play, what: str) -> None:
    info = play.steps[-1].info
    missing = {"response", "reward_parts", "score_status", "episode_record", "metrics"} - info.keys()
    _require(
        not missing, f"{what} the last info has no {', '.join(sorted(missing))}", "report them at the episode's end"
    )
    numbers = {**info["reward_parts"], **info["metrics"]}
    bad = {name: value for name, value in numbers.items() if not (isinstance(value, float) and math.isfinite(value))}
    _require(not bad, f"{what} reward parts or metrics are {bad}", "give finite floats")
    total = math.fsum(step.reward for step in play.steps)
    _require(
        math.isclose(info["episode_record"]["reward"], total, rel_tol=1e-6, abs_tol=1e-6),
        f"{what} the steps' rewards add up to {total}; the episode's record says {info['episode_record']['reward']}",
        "leave episode.reward to the environment",
    )


def _check_batches(env: TokenEnv | TextEnv, seed: int) -> None:
    """Vector environments score the episodes that end together in one call."""
    plays = [_play(env, s, replies) for s in range(seed, seed + N_EPISODES) for _, replies in _replies(env)]
    episodes = [play.episode for play in plays]
    reward = env.setting.reward
    for when in env.setting.whens:
        alone = [reward.score_at(when, [episode])[0] for episode in episodes]
        together = reward.score_at(when, episodes)
        _require(
            all(map(_equal_but_for_rounding, alone, together)),
            f"the reward scores {len(episodes)} episodes otherwise in one batch than one by one",
            "return one Score an episode, in their order, that depends on that episode alone",
        )


def _equal_but_for_rounding(first: Score, second: Score) -> bool:
    """Whether two scores are the same; a model's sums depend on the size of the batch in the last digits."""
    if first.status != second.status or first.parts.keys() != second.parts.keys():
        return False
    pairs = [(first.parts[name], second.parts[name]) for name in first.parts]
    pairs.append((first.value or 0.0, second.value or 0.0))  # of the same status, both have a value or neither has
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in pairs)


def _check_references(env: TokenEnv | TextEnv, seed: int) -> None:
    right, wrong = [], []
    for index, sample in enumerate(env.samples[:N_REFERENCES]):
        replies = env.task.demonstration(sample) if env.task.is_multi_turn else sample.references[:1]
        if not sample.references or not replies:
            continue
        right.append(_total(_play(env, seed, _cycle(env, replies), index)))
        wrong.append(_total(_play(env, seed, _cycle(env, [_corrupted(reply) for reply in replies]), index)))
    _require(
        math.fsum(right) >= math.fsum(wrong),
        f"the references of the first {len(right)} samples earn {math.fsum(right):g}, and with their letters shuffled "
        f"{math.fsum(wrong):g}",
        "look for a reward with the wrong sign, references of other samples, or references too long for max_new_tokens",
    )


def _check_as_others_do(env: TokenEnv | TextEnv) -> None:
    checkers: list[tuple[str, Callable[[], Any]]] = [
        ("Gymnasium", lambda: gymnasium_check_env(env, skip_render_check=True))
    ]
    if isinstance(env, TokenEnv):
        checkers.append(("Stable-Baselines3", lambda: sb3_check_env(env)))
    for name, check in checkers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # that is how both of them object
                warnings.simplefilter("ignore", TextGymWarning)
                check()
        except (AssertionError, gymnasium.error.Error, TypeError, ValueError, UserWarning) as error:
            raise EnvironmentCheckError(f"{name}'s checker objects: {error}") from error


# Playing


def _play(env: TokenEnv | TextEnv, seed: int, replies: Sequence[Any] | None = None, index: int | None = None) -> Play:
    """Plays an episode: with the actions given, again and again, or with random ones that depend on the seed alone."""
    options = None if index is None else {"sample": index}
    observation, info = env.reset(seed=seed, options=options)
    steps: list[Step] = []
    for action in _actions(env, seed, replies):
        result, reward, terminated, truncated, step_info = env.step(action)
        steps.append(Step(action, result, reward, terminated, copy.deepcopy(step_info)))
        if terminated or truncated:
            break
    return Play(observation, info, steps, env.episode)


def _actions(env: TokenEnv | TextEnv, seed: int, actions: Sequence[Any] | None) -> Iterator[Any]:
    rng = np.random.default_rng(seed)
    for i in range(_max_steps(env)):
        if actions is not None:
            yield actions[i % len(actions)]
        elif isinstance(env, TextEnv):
            yield NONSENSE[: int(rng.integers(len(NONSENSE) + 1))]
        elif env.setting.renderer.end_token is not None and rng.random() < 0.2:
            yield env.setting.renderer.end_token
        else:
            yield int(rng.integers(len(env.tokenizer)))


def _max_steps(env: TokenEnv | TextEnv) -> int:
    return MAX_TURNS if isinstance(env, TextEnv) else max(MAX_TOKENS, MAX_FULL_TURNS * env.setting.max_new_tokens)


def _replies(env: TokenEnv | TextEnv) -> list[tuple[str, Sequence[Any]]]:
    """Replies of awkward shapes, as actions to repeat until the episode is over."""
    if isinstance(env, TextEnv):
        return [("empty", [""]), ("over-long", [NONSENSE * 200])]
    end, ids = env.setting.renderer.end_token, env.setting.renderer.reply_ids(NONSENSE)
    over_long = [token for token in ids if token != end]
    return [("over-long", over_long)] if end is None else [("empty", [end]), ("over-long", over_long)]


def _cycle(env: TokenEnv | TextEnv, replies: Sequence[str]) -> Sequence[Any]:
    if isinstance(env, TextEnv):
        return list(replies)
    return [token for reply in replies for token in env.setting.renderer.reply_ids(reply)]


def _total(play: Play) -> float:
    for step in play.steps:
        _check_step(step, f"in an episode about sample {play.episode.sample.id!r}")
    return math.fsum(step.reward for step in play.steps)


def _corrupted(text: str) -> str:
    """The same letters in another order."""
    letters = list(text)
    random.Random(0).shuffle(letters)
    shuffled = "".join(letters)
    return shuffled if shuffled != text else "#" * max(len(text), 1)


def _global_generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()


def _same(a: Any, b: Any) -> bool:
    """Equality that reaches into containers of arrays."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b or (a != a and b != b))  # NaN equals itself here


def _difference(first: Play, second: Play) -> str:
    if not _same(first.observation, second.observation) or not _same(first.info, second.info):
        return "they begin differently"
    for i, (a, b) in enumerate(zip(first.steps, second.steps, strict=False)):
        for field in Step._fields:
            if not _same(getattr(a, field), getattr(b, field)):
                return f"step {i} has another {field}"
    return f"they have {len(first.steps)} and {len(second.steps)} steps"
