"""DQN of a language model: what it replays, its targets written out, masks, saving."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import END, MODELS, VOCABULARY, ToyEnv

from textgym import TokenVectorEnv
from textgym.agents import DQN, CausalLMPolicy
from textgym.agents.dqn import CausalLMQPolicy
from textgym.errors import ConfigurationError

FORBIDDEN = 7


class Masked(ToyEnv):
    """Token 7 is never allowed, and END not as a turn's first token."""

    def action_masks(self):
        mask = np.ones(VOCABULARY, dtype=bool)
        mask[FORBIDDEN] = False
        mask[END] = self.used > 0
        return mask


class Recorder(gym.Wrapper):
    """Keeps the transitions that it made: ids before and after, action, reward, over, truncated, mask after."""

    def __init__(self, env, log):
        super().__init__(env)
        self.log = log

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        self.ids = tokens(observation)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        after = tokens(observation)
        mask = self.unwrapped.action_masks() if hasattr(self.unwrapped, "action_masks") else None
        self.log.append((self.ids, after, int(action), reward, terminated, truncated, mask))
        self.ids = after
        return observation, reward, terminated, truncated, info


def tokens(observation):
    return tuple(observation["input_ids"][: observation["attention_mask"].sum()].tolist())


def make_agent(env=lambda: ToyEnv(2, 4), n_envs=3, **kwargs):
    torch.manual_seed(0)
    settings = {"learning_starts": 10, "batch_size": 20, "learning_rate": 1e-3, "train_freq": 4, "gamma": 0.9}
    settings |= {"target_update_interval": 40, "seed": 1, "device": "cpu"} | kwargs
    policy_kwargs = {"model": MODELS["llama"]()} | settings.pop("policy_kwargs", {})
    return DQN("CausalLMPolicy", DummyVecEnv([env] * n_envs), policy_kwargs=policy_kwargs, **settings)


def recorded_agent(env, **kwargs):
    log = []
    agent = make_agent(lambda: Recorder(env(), log), **kwargs)
    return agent, log


def truncated_masked():
    return gym.wrappers.TimeLimit(Masked(2, 4), 7)


def transitions_of(samples):
    """The transitions of a minibatch as the environment's side would tell them."""
    found = []
    for i in range(len(samples.actions)):
        row = samples.input_ids[samples.rows[i]].tolist()
        before, after = (tuple(row[: int(columns[i]) + 1]) for columns in (samples.columns, samples.next_columns))
        goes_on = bool(samples.goes_on[i])
        found.append((before, after, int(samples.actions[i]), pytest.approx(float(samples.rewards[i])), goes_on))
    return found


def test_what_is_replayed_is_what_happened():
    agent, log = recorded_agent(truncated_masked, exploration_final_eps=1.0)
    agent.learn(450)
    kinds = set()
    happened = {(before, after): (action, reward, over, cut) for before, after, action, reward, over, cut, _ in log}
    for before, after, action, reward, goes_on in transitions_of(agent.replay_buffer.sample(400)):
        assert (action, reward) == happened[before, after][:2]
        over, cut = happened[before, after][2:]
        assert goes_on == (not over)
        kinds.add((over, cut and not over))
    assert kinds == {(False, False), (True, False), (False, True)}


def test_an_episode_that_learn_broke_off_is_not_replayed():
    agent, log = recorded_agent(lambda: ToyEnv(2, 4))
    for steps in (6, 9, 6, 60):
        agent.learn(steps)
    happened = {(before, after): (action, reward) for before, after, action, reward, *_ in log}
    for before, after, action, reward, _ in transitions_of(agent.replay_buffer.sample(200)):
        assert (action, reward) == happened[before, after]


def test_observations_that_the_step_writes_over_are_replayed_as_they_were(guess, tokenizer):
    def columns(copy):
        venv = TokenVectorEnv(guess, 2, reward=lambda: 0.5, tokenizer=tokenizer, max_context=96, copy=copy)
        torch.manual_seed(0)
        config = MODELS["llama"]().config
        config.vocab_size, config.max_position_embeddings = len(tokenizer), 96
        agent = DQN("CausalLMPolicy", venv, learning_starts=1000, seed=0, device="cpu", policy_kwargs={"model": config})
        agent.learn(100)
        return [episode.columns for episode in agent.replay_buffer.episodes]

    assert len(columns(copy=True)) > 2
    assert columns(copy=False) == columns(copy=True)


def test_values_are_float32_under_autocast():
    agent, found = make_agent(policy_kwargs={"dtype": "bfloat16"}), []
    for head in (agent.policy.value_head, agent.policy.target[1]):
        head.register_forward_hook(lambda head, arguments, value: found.append(value.dtype))
    agent.learn(60)
    assert set(found) == {torch.float32}


@pytest.mark.parametrize("env", [lambda: ToyEnv(2, 4), truncated_masked], ids=["plain", "truncated-masked"])
def test_targets_are_double_and_masked(env):
    """Each transition alone, through plain forward passes, with every action's value."""
    agent, log = recorded_agent(env)
    agent.learn(120)
    policy, gamma = agent.policy, 0.9
    for parameter in policy.target.parameters():  # far enough from the online network for another argmax
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    samples = agent.replay_buffer.sample(60)
    values, targets = agent.values_and_targets(samples)
    masks = {(before, after): mask for before, after, *_, mask in log}
    changed = 0
    for i, (before, after, action, reward, goes_on) in enumerate(transitions_of(samples)):
        online, target = (all_values(networks, after) for networks in (agent.q_net, agent.q_net_target))
        mask = masks[before, after]
        if mask is not None and i + 1 < len(values) and samples.rows[i + 1] == samples.rows[i]:
            online = online.masked_fill(~torch.as_tensor(mask), -np.inf)
        best = online.argmax()
        changed += int(best != target.argmax())
        expected = reward.expected + gamma * goes_on * target[best].item()
        assert targets[i].item() == pytest.approx(expected, abs=1e-5)
        assert values[i].item() == pytest.approx(all_values(agent.q_net, before)[action].item(), abs=1e-5)
    assert changed > 5
    assert values.requires_grad
    assert not targets.requires_grad


def all_values(networks, ids, scale=0.1):
    """V + scale * log softmax, from the model's own outputs."""
    model, head = networks
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
        return head(output.hidden_states[-1][0, -1]) + scale * output.logits[0, -1].log_softmax(-1)


def test_forbidden_tokens_are_never_written():
    agent, log = recorded_agent(truncated_masked, exploration_fraction=1.0)
    agent.learn(300)
    assert FORBIDDEN not in {action for _, _, action, *_ in log}
    masks = torch.ones(50, VOCABULARY, dtype=torch.bool)
    masks[:, FORBIDDEN] = False
    hidden = torch.randn(50, 32) - 100 * agent.policy.model.get_output_embeddings().weight[FORBIDDEN]
    assert (agent.policy.best_actions(-hidden, None) == FORBIDDEN).all()
    assert (agent.policy.best_actions(-hidden, masks) != FORBIDDEN).all()


def test_exploration_is_the_softmax_policys_and_ends_in_greed():
    agent = make_agent(n_envs=1)
    observation, _ = agent.policy.obs_to_tensor(agent.env.reset())
    observation = {name: value.expand(400, -1) for name, value in observation.items()}
    with torch.no_grad():
        greedy = agent.policy.act(observation, torch.zeros(400, dtype=torch.bool), None)
        drawn = agent.policy.act(observation, torch.ones(400, dtype=torch.bool), None)
    assert len(greedy.unique()) == 1
    assert greedy[0] == agent.policy.get_distribution({k: v[:1] for k, v in observation.items()}).mode()[0]
    assert len(drawn.unique()) > 15


def test_the_target_follows_at_its_interval():
    agent = make_agent(target_update_interval=10_000)
    before = [parameter.clone() for parameter in agent.q_net_target.parameters()]
    agent.learn(120)
    for old, new in zip(before, agent.q_net_target.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)
    assert any((a != b).any() for a, b in zip(before, agent.q_net.parameters(), strict=True))
    agent = make_agent(target_update_interval=3)
    agent.learn(120)
    agent._n_calls = 0
    agent._on_step()
    for online, target in zip(agent.q_net.parameters(), agent.q_net_target.parameters(), strict=True):
        torch.testing.assert_close(online, target, rtol=0, atol=0)


def test_what_could_not_be_scored_is_not_replayed():
    agent = make_agent(lambda: ToyEnv(1, 4, fails=True))
    agent.learn(200)
    for episode in agent.replay_buffer.episodes:
        assert episode.ids.sum() % 2 == 1
    assert len(agent.replay_buffer.episodes) > 5


def test_the_oldest_episodes_go():
    agent = make_agent(buffer_size=50)
    agent.learn(300)
    buffer = agent.replay_buffer
    assert 40 < buffer.size() <= 50
    assert buffer.size() == sum(map(len, buffer.episodes))
    buffer.reset()
    assert buffer.size() == 0


def test_saved_and_loaded_it_goes_on(tmp_path):
    agent = make_agent(policy_kwargs={"scale": 0.3})
    agent.learn(100)
    agent.save(tmp_path / "agent.zip")
    loaded = DQN.load(tmp_path / "agent.zip", env=agent.env, device="cpu")
    assert loaded.policy.scale == 0.3
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(value, loaded.policy.state_dict()[name], rtol=0, atol=0)
    loaded.learn(100)
    assert loaded._n_updates > agent._n_updates
    agent.policy.save_pretrained(tmp_path / "folder")
    again = make_agent(policy_kwargs={"model": str(tmp_path / "folder")})
    observation = agent.env.reset()
    assert (
        again.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]
    ).all()
    assert again.predict(observation)[0].shape == (3,)


def test_without_a_language_model_it_is_sb3s():
    ours, stock = (
        cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", learning_starts=50).learn(300)
        for cls in (DQN, stable_baselines3.DQN)
    )
    for name, value in stock.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], value, rtol=0, atol=0)
    observation = np.zeros(4, np.float32)
    assert ours.predict(observation, deterministic=True)[0] == stock.predict(observation, deterministic=True)[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy": CausalLMPolicy}, "action values"),
        ({"policy_kwargs": {"scale": 0.0}}, "scale"),
        ({"policy_kwargs": {"value": "separate"}}, "value"),
        ({"replay_buffer_class": DictReplayBuffer}, "TokenReplayBuffer"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    policy = kwargs.pop("policy", CausalLMQPolicy)
    policy_kwargs = {"model": MODELS["llama"]()} | kwargs.pop("policy_kwargs", {})
    with pytest.raises(ConfigurationError, match=message):
        DQN(policy, DummyVecEnv([ToyEnv]), policy_kwargs=policy_kwargs, device="cpu", **kwargs)
