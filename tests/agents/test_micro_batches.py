"""Micro-batches bound what is held in memory at a time, and change nothing else."""

import gc

import pytest
import torch
from test_ppo import make_agent
from toy import MODELS

from textgym.agents import PPO
from textgym.agents.inference import FixedLinear
from textgym.agents.policies import CausalLMPolicy
from textgym.errors import ConfigurationError


def gradients(agent, **settings):
    """Of a loss over all that a rollout holds."""
    agent.rollout_buffer.micro_batch_size = settings.get("micro_batch_size")
    samples = agent.rollout_buffer.samples()
    policy = agent.policy
    policy.set_training_mode(True)
    values, log_prob, entropy = policy.evaluate_actions(samples.observations, samples.actions)
    policy.optimizer.zero_grad()
    (log_prob * samples.advantages - 0.1 * entropy + (values.flatten() - samples.returns) ** 2).mean().backward()
    return samples, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def alive():
    """How many packed layers there are."""
    gc.collect()
    return sum(type(thing) is FixedLinear for thing in gc.get_objects())


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("options", [{}, {"value": "separate", "temperature": 0.7, "top_k": 12}], ids=["", "separate"])
def test_the_gradients_are_those_of_the_whole_minibatch(shape, options):
    agent = make_agent(shape, policy_kwargs=options, ent_coef=0.1).learn(48)
    whole, expected = gradients(agent)
    parts, found = gradients(agent, micro_batch_size=7)
    assert len(whole.observations.groups) < len(parts.observations.groups)
    assert torch.equal(whole.actions, parts.actions)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_learning_is_the_same():
    of_whole, of_parts = (
        make_agent("llama", micro_batch_size=size, kl_coef=0.1).learn(96).get_parameters()["policy"]
        for size in (None, 5)
    )
    for name, value in of_whole.items():
        torch.testing.assert_close(of_parts[name], value, rtol=0, atol=1e-5, msg=name)


def test_no_micro_batch_keeps_a_copy_of_the_head():
    agent = make_agent("llama", micro_batch_size=7).learn(48)
    samples = agent.rollout_buffer.samples()
    before = alive()
    _, log_prob, _ = agent.policy.evaluate_actions(samples.observations, samples.actions)
    assert log_prob.requires_grad
    assert alive() == before


def test_no_pass_takes_more_than_one_micro_batch(monkeypatch):
    """Neither the reference's nor the update's; one long segment may be larger by itself."""
    taken = []
    original = CausalLMPolicy.action_states

    def watched(self, trunk, group):
        taken.append((len(group.input_ids), len(group.rows)))
        return original(self, trunk, group)

    monkeypatch.setattr(CausalLMPolicy, "action_states", watched)
    make_agent("llama", micro_batch_size=6, kl_coef=0.1).learn(48)
    assert len(taken) > 8
    assert all(n_actions <= 6 or n_segments == 1 for n_segments, n_actions in taken)


@pytest.mark.parametrize("size", [0, -3, 2.5, "all"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigurationError, match="micro_batch_size is a whole number from 1 up"):
        make_agent("llama", micro_batch_size=size)


def test_only_language_models_have_micro_batches():
    with pytest.raises(ConfigurationError, match="micro_batch_size"):
        PPO("MlpPolicy", "CartPole-v1", micro_batch_size=8)


def test_it_is_saved_with_the_agent(tmp_path):
    agent = make_agent("llama", micro_batch_size=6)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=agent.get_env())
    assert loaded.rollout_buffer.micro_batch_size == 6
