"""Ours and stock SB3's PPO, same policy, seed and environment: the same parameters after learning."""

import copy

import gymnasium as gym
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import MODELS, ToyEnv

from textgym.agents import A2C, PPO, CausalLMPolicy

N_ENVS, N_STEPS, ITERATIONS = 6, 16, 3


def toy_vec_env(turns: int, truncated: bool) -> DummyVecEnv:
    def make() -> gym.Env:
        env = ToyEnv(turns, turn_tokens=3 if turns > 1 else 6)
        return gym.wrappers.TimeLimit(env, 7) if truncated else env

    return DummyVecEnv([make] * N_ENVS)


def learned_parameters(algorithm, policy, env, model, **kwargs):
    batch = N_ENVS * N_STEPS
    defaults = {
        "n_steps": N_STEPS,
        "learning_rate": 1e-3,
        "seed": 3,
        "device": "cpu",
    }
    if issubclass(algorithm, stable_baselines3.PPO):
        defaults |= {"batch_size": batch, "n_epochs": 3}
    kwargs = defaults | kwargs
    agent = algorithm(policy, env, policy_kwargs={"model": copy.deepcopy(model), "temperature": 0.8}, **kwargs)
    agent.learn(ITERATIONS * batch)
    return {name: parameter.detach() for name, parameter in agent.policy.named_parameters()}


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize(
    ("turns", "truncated", "kwargs"),
    [
        pytest.param(1, False, {}, id="single-turn"),
        pytest.param(3, False, {"ent_coef": 0.01, "clip_range_vf": 0.2}, id="multi-turn-entropy-clip"),
        pytest.param(4, True, {"gamma": 0.9}, id="truncated"),
    ],
)
def test_parameters_equal_those_of_stock_ppo(shape, turns, truncated, kwargs):
    torch.manual_seed(0)
    model = MODELS[shape]()
    start = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    ours = learned_parameters(PPO, "CausalLMPolicy", toy_vec_env(turns, truncated), model, **kwargs)
    stock = learned_parameters(stable_baselines3.PPO, CausalLMPolicy, toy_vec_env(turns, truncated), model, **kwargs)
    assert furthest(ours, stock) <= 1e-5
    assert furthest({name: ours[name] for name in start}, start) >= 1e-3


@pytest.mark.parametrize(
    "kwargs", [{}, {"use_rms_prop": False, "ent_coef": 0.01, "normalize_advantage": True}], ids=str
)
def test_parameters_equal_those_of_stock_a2c(kwargs):
    torch.manual_seed(0)
    model = MODELS["llama"]()
    start = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    ours = learned_parameters(A2C, "CausalLMPolicy", toy_vec_env(4, True), model, **kwargs)
    stock = learned_parameters(stable_baselines3.A2C, CausalLMPolicy, toy_vec_env(4, True), model, **kwargs)
    assert furthest(ours, stock) <= 1e-5
    assert furthest({name: ours[name] for name in start}, start) >= 1e-3


def _last_value_zero(monkeypatch):
    monkeypatch.setattr(PPO, "collect_rollouts", _zeroing(PPO.collect_rollouts, "at_rollout_end"))


def _zeroing(original, which):
    """collect_rollouts with ``predict_values`` zeroed at the rollout's end, or in its middle."""

    def collect(self, env, callback, rollout_buffer, n_rollout_steps):
        predict = self.policy.predict_values

        def zeroed(obs):
            at_end = len(obs["input_ids"]) == env.num_envs
            return predict(obs) * float(at_end != (which == "at_rollout_end"))

        self.policy.predict_values = zeroed
        try:
            return original(self, env, callback, rollout_buffer, n_rollout_steps)
        finally:
            del self.policy.predict_values

    return collect


def _terminal_value_zero(monkeypatch):
    monkeypatch.setattr(PPO, "collect_rollouts", _zeroing(PPO.collect_rollouts, "at_truncation"))


def _cache_survives_update(monkeypatch):
    from textgym.agents import policies

    kept = []

    def decoder(trunk, n_rows):
        if not kept:
            kept.append(original(trunk, n_rows))
        return kept[0]

    original = policies.IncrementalDecoder
    monkeypatch.setattr(policies, "IncrementalDecoder", decoder)


def _wrong_state_after_append(monkeypatch):
    from textgym.agents import policies
    from textgym.agents.decoding import IncrementalDecoder

    monkeypatch.setattr(policies, "supports_row_cache", lambda *args: True)  # whose trial would find it out
    store = IncrementalDecoder._store
    append = IncrementalDecoder._append

    def shifted(self, *args):
        self._store = lambda rows, hidden: store(self, rows, hidden.roll(1, 0) * 0.9)
        append(self, *args)
        del self._store

    monkeypatch.setattr(IncrementalDecoder, "_append", shifted)


def _dropout_in_update(monkeypatch):
    from textgym.agents import policies

    encode = policies.CausalLMPolicy.encode

    def dropped(self, trunk, ids):
        return torch.nn.functional.dropout(encode(self, trunk, ids), 0.1, self.training)

    monkeypatch.setattr(policies.CausalLMPolicy, "encode", dropped)


MUTANTS = [
    _last_value_zero,
    _terminal_value_zero,
    _cache_survives_update,
    _wrong_state_after_append,
    _dropout_in_update,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda f: f.__name__.lstrip("_"))
def test_the_comparison_catches_mutants(mutant, monkeypatch):
    """What the prototype's mistakes looked like: each must break the equality above."""
    torch.manual_seed(0)
    model = MODELS["llama"]()
    stock = learned_parameters(stable_baselines3.PPO, CausalLMPolicy, toy_vec_env(4, True), model)
    mutant(monkeypatch)
    ours = learned_parameters(PPO, "CausalLMPolicy", toy_vec_env(4, True), model)
    assert furthest(ours, stock) > 1e-5
