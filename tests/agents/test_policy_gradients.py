"""A2C, REINFORCE, RLOO and GRPO: one update against the formula written out, groups, errors, saving."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import MODELS, ToyEnv

import textgym
from textgym.agents import A2C, GRPO, PPO, REINFORCE, RLOO, CausalLMPolicy, Seq2SeqLMPolicy
from textgym.errors import ConfigurationError

GROUPED = [RLOO, GRPO]
ALL = [REINFORCE, *GROUPED]


class OwnPrompts(ToyEnv):
    """A toy whose prompt and chance are those of its group's seed."""

    group_size = 3

    def __init__(self, group):
        super().__init__(turns=2, turn_tokens=4)
        self.group, self.episode = group, 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=1000 * self.group + self.episode)


def make_agent(algorithm, n_envs=6, n_episodes=12, env=None, **kwargs):
    torch.manual_seed(0)
    env = env or DummyVecEnv([lambda i=i: OwnPrompts(i // 3) for i in range(n_envs)])
    settings = {"learning_rate": 1e-3, "seed": 2, "device": "cpu"} | kwargs
    policy_kwargs = {"model": MODELS["llama"](), "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    return algorithm("CausalLMPolicy", env, n_episodes=n_episodes, policy_kwargs=policy_kwargs, **settings)


def collect(agent, total=1):
    """One rollout and its update; the weights before it."""
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(total)
    return before


def advantages_written_out(agent):
    """By segment: the advantage of each token, straight from the definitions."""
    buffer = agent.rollout_buffer
    earned = buffer.earned()
    if type(agent) is REINFORCE:
        to_go = [np.array([rewards[i:].sum() for i in range(len(rewards))]) for rewards in earned]
        longest = max(map(len, to_go))
        padded = np.array([np.pad(values, (0, longest - len(values))) for values in to_go])
        return [g - np.delete(padded, i, 0).mean(0)[: len(g)] for i, g in enumerate(to_go)]
    returns = np.array([rewards.sum() for rewards in earned])
    prompts = [tuple(buffer.streams[s.environment, s.start : s.start + 2]) for s in buffer.segments]
    lengths = [int(buffer.positions[s.first_step, s.environment]) - s.start for s in buffer.segments]
    keys = [(*prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    advantages = []
    for i, key in enumerate(keys):
        group = [j for j in range(len(keys)) if keys[j] == key]
        assert len(group) == 3
        if type(agent) is RLOO:
            value = returns[i] - np.mean([returns[j] for j in group if j != i])
        else:
            value = (returns[i] - returns[group].mean()) / (returns[group].std(ddof=1) + 1e-4)
        advantages.append(np.full(len(earned[i]), value))
    return advantages


def loss_written_out(agent, model):
    """The loss of the whole rollout, each segment alone through the plain model."""
    buffer = agent.rollout_buffer
    per_segment = []
    for segment, advantages in zip(buffer.segments, advantages_written_out(agent), strict=True):
        steps = slice(segment.first_step, segment.last_step + 1)
        ids = torch.as_tensor(buffer.streams[segment.environment, segment.start : segment.stop])[None]
        columns = torch.as_tensor(buffer.positions[steps, segment.environment] - segment.start)
        logits = model(ids).logits[0, columns, : agent.policy.n_actions]
        actions = torch.as_tensor(buffer.actions[steps, segment.environment])
        log_prob = logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
        a = torch.as_tensor(advantages, dtype=torch.float32)
        if type(agent) is GRPO:
            ratio = torch.exp(log_prob - log_prob.detach())
            gap = torch.as_tensor(buffer.reference_log_probs[steps, segment.environment]) - log_prob
            per_segment.append((ratio * a - agent.kl_coef * (gap.exp() - gap - 1)).mean()[None])
        else:
            per_segment.append(log_prob * a)
    return -torch.cat(per_segment).mean()


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.__name__)
def test_an_update_is_a_step_along_the_papers_gradient(algorithm):
    kwargs = {"ref_model": MODELS["gpt2"](), "kl_coef": 0.3} if algorithm is GRPO else {}
    agent = make_agent(algorithm, max_grad_norm=1e9, learning_rate=1e-2, **kwargs)
    before = collect(agent)
    model = MODELS["llama"]()
    model.load_state_dict({name[6:]: value for name, value in before.items() if name.startswith("model.")})
    loss_written_out(agent, model).backward()
    moved = 0.0
    for name, parameter in model.named_parameters():
        step = before[f"model.{name}"] - agent.policy.state_dict()[f"model.{name}"]
        torch.testing.assert_close(step, 1e-2 * parameter.grad, atol=1e-6, rtol=1e-3)
        moved = max(moved, step.abs().max().item())
    assert moved > 1e-4


def test_minibatches_cover_the_rollout_once_an_epoch():
    agent = make_agent(GRPO, batch_size=16, n_epochs=3, kl_coef=0.0)
    seen = []
    loss = agent.loss
    agent.loss = lambda samples, log_prob: (seen.append(len(samples.actions)), loss(samples, log_prob))[1]
    agent.learn(1)
    assert sum(seen) == 3 * agent.rollout_buffer.n_trainable
    assert len(seen) > 6


@pytest.mark.parametrize("algorithm", GROUPED, ids=lambda a: a.__name__)
def test_groups_lack_what_could_not_be_scored(algorithm):
    class Broken(OwnPrompts):
        def step(self, action):
            *result, info = super().step(action)
            return (*result, {"score_status": "broken"} if result[2] and self.group == 0 and self.turn else info)

    env = DummyVecEnv([lambda i=i: (Broken if i == 1 else OwnPrompts)(i // 3) for i in range(6)])
    agent = make_agent(algorithm, env=env, kl_coef=0.0)
    agent.learn(1)
    assert agent.rollout_buffer.n_unscored == 2
    sizes = np.unique(agent.groups(), return_counts=True)[1]
    assert sorted(sizes) == [2, 2, 3, 3]


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.__name__)
def test_truncated_episodes_have_no_return(algorithm):
    env = DummyVecEnv([lambda i=i: gym.wrappers.TimeLimit(OwnPrompts(i // 3), 5) for i in range(6)])
    agent = make_agent(algorithm, env=env, kl_coef=0.0)
    agent.learn(1)
    buffer = agent.rollout_buffer
    assert buffer.n_unscored > 0
    assert len(buffer.segments) + buffer.n_unscored == 12


def test_groups_are_asked_for_when_environments_are_set(tmp_path):
    agent = make_agent(RLOO)
    agent.save(tmp_path / "agent.zip")
    for one in (agent, RLOO.load(tmp_path / "agent.zip", device="cpu")):
        with pytest.raises(ConfigurationError, match="in groups"):
            one.set_env(DummyVecEnv([ToyEnv] * 6))


def test_nothing_scored_is_no_update():
    agent = make_agent(REINFORCE, env=DummyVecEnv([lambda: AlwaysBroken(2, 4)] * 2), n_episodes=4)
    before = collect(agent)
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class AlwaysBroken(ToyEnv):
    def step(self, action):
        *result, info = super().step(action)
        return (*result, {"score_status": "broken"} if result[2] else info)


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.__name__)
def test_saved_and_loaded_it_goes_on_as_it_would_have(algorithm, tmp_path):
    agent = make_agent(algorithm, kl_coef=0.1)
    agent.learn(1)
    agent.save(tmp_path / "agent.zip")
    env = DummyVecEnv([lambda i=i: OwnPrompts(i // 3) for i in range(6)])
    loaded = algorithm.load(tmp_path / "agent.zip", env=env, device="cpu")
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(value, loaded.policy.state_dict()[name], rtol=0, atol=0)
    for name, value in agent.reference.state_dict().items():
        torch.testing.assert_close(value, loaded.reference.state_dict()[name], rtol=0, atol=0)
    assert (loaded.n_episodes, loaded.kl_coef, loaded.gamma) == (12, 0.1, 1.0)
    loaded.learn(1)
    assert loaded._n_updates > agent._n_updates


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "message"),
    [
        (REINFORCE, {"policy": ActorCriticPolicy}, "CausalLMPolicy"),
        (REINFORCE, {"batch_size": 0}, "batch_size"),
        (REINFORCE, {"kl_estimator": "k4"}, "kl_estimator"),
        (RLOO, {"env": DummyVecEnv([ToyEnv] * 2)}, "group_size"),
        (RLOO, {"gamma": 0.9}, "gamma is 1"),
        (GRPO, {"n_episodes": 10}, "multiple"),
        (GRPO, {"n_epochs": 0}, "n_epochs"),
        (GRPO, {"kl_estimator": "k1"}, "'k2' or 'k3'"),
        (REINFORCE, {"n_episodes": None}, "whole episodes"),
    ],
)
def test_wrong_arguments_are_refused(algorithm, kwargs, message):
    policy = kwargs.pop("policy", "CausalLMPolicy")
    env = kwargs.pop("env", None) or DummyVecEnv([lambda: OwnPrompts(0)] * 3)
    with pytest.raises((ConfigurationError, ValueError), match=message):
        algorithm(policy, env, **{"n_episodes": 12, "policy_kwargs": {"model": MODELS["llama"]()}} | kwargs)


def test_without_a_language_model_a2c_is_sb3s():
    ours, stock = (
        cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(200) for cls in (A2C, stable_baselines3.A2C)
    )
    for name, value in stock.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ConfigurationError, match="n_episodes"):
        A2C("MlpPolicy", "CartPole-v1", n_episodes=4)


def test_a_group_meets_the_same_samples_and_chance():
    venv = textgym.make_vec("textgym/Increasing-v0", num_envs=6, group_size=3)
    rng = np.random.default_rng(0)
    seen = [[] for _ in range(6)]
    venv.reset(seed=5)
    for _ in range(400):
        for row, episode in enumerate(venv.unwrapped.episodes):
            if not seen[row] or seen[row][-1] is not episode:
                seen[row].append(episode)
        venv.step(rng.integers(venv.single_action_space.n, size=6))
    ids = [[(episode.sample.id, episode.seed) for episode in row] for row in seen]
    for group in (ids[:3], ids[3:]):
        shortest = min(map(len, group))
        assert shortest > 3
        assert group[0][:shortest] == group[1][:shortest] == group[2][:shortest]
    assert ids[0][:4] != ids[3][:4]
    assert len({id for id, _ in ids[0]}) > 2


def test_groups_start_together_again_at_a_reset_and_repeat_with_its_seed():
    venv = textgym.make_vec("textgym/Increasing-v0", num_envs=4, group_size=2)
    first = [episode_ids(venv, seed) for seed in (3, None, 3, 4)]
    assert first[0] == first[2]
    assert len({tuple(ids) for ids in first}) == 3
    for ids in first:
        assert ids[0] == ids[1]
        assert ids[2] == ids[3]


def episode_ids(venv, seed):
    venv.reset(seed=seed)
    return [episode.sample.id for episode in venv.unwrapped.episodes]


@pytest.mark.parametrize("group_size", [0, 3])
def test_groups_that_do_not_divide_the_environments_are_refused(group_size):
    with pytest.raises(ConfigurationError, match="group_size"):
        textgym.make_vec("textgym/Copy-v0", num_envs=4, group_size=group_size)


def test_ppo_is_still_one_of_sb3s():
    assert issubclass(PPO, stable_baselines3.PPO)
    assert issubclass(A2C, stable_baselines3.A2C)
    assert REINFORCE.policy_aliases == {"CausalLMPolicy": CausalLMPolicy, "Seq2SeqLMPolicy": Seq2SeqLMPolicy}
