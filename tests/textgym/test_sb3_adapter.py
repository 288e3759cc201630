import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

import textgym
from textgym import TokenEnv, TokenVectorEnv, sb3_vec_env
from textgym.errors import ConfigurationError

ON_POLICY = {"n_steps": 16, "seed": 0}
OFF_POLICY = {"buffer_size": 200, "learning_starts": 16, "batch_size": 8, "seed": 0}
ALGORITHMS = {
    "PPO": (stable_baselines3.PPO, "MultiInputPolicy", {**ON_POLICY, "batch_size": 16, "n_epochs": 1}),
    "A2C": (stable_baselines3.A2C, "MultiInputPolicy", ON_POLICY),
    "DQN": (stable_baselines3.DQN, "MultiInputPolicy", OFF_POLICY),
    "QRDQN": (sb3_contrib.QRDQN, "MultiInputPolicy", OFF_POLICY),
    "TRPO": (sb3_contrib.TRPO, "MultiInputPolicy", {**ON_POLICY, "batch_size": 16}),
    "MaskablePPO": (sb3_contrib.MaskablePPO, "MultiInputPolicy", {**ON_POLICY, "batch_size": 16, "n_epochs": 1}),
    "RecurrentPPO": (
        sb3_contrib.RecurrentPPO,
        "MultiInputLstmPolicy",
        {**ON_POLICY, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"lstm_hidden_size": 8}},
    ),
}


@pytest.fixture
def venv(capitals, chat_tokenizer):
    return TokenVectorEnv(capitals, 2, tokenizer=chat_tokenizer, max_context=48, max_new_tokens=4)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("vector", [True, False])
def test_stock_algorithms_train(name, vector, venv, capitals, chat_tokenizer):
    algorithm, policy, arguments = ALGORITHMS[name]
    env = TokenEnv(capitals, tokenizer=chat_tokenizer, max_context=48, max_new_tokens=4)
    agent = algorithm(policy, sb3_vec_env(venv) if vector else env, **arguments)
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    assert agent.num_timesteps >= 64
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert len(agent.ep_info_buffer) > 5


def test_the_call_of_the_issue(capitals, tokenizer):
    textgym.register("demo/Stock-v0", task=capitals, tokenizer=tokenizer)
    try:
        stable_baselines3.PPO("MultiInputPolicy", gym.make("demo/Stock-v0", max_context=40), n_steps=64).learn(64)
    finally:
        del gym.registry["demo/Stock-v0"]


def test_infos(venv, chat_tokenizer):
    env = sb3_vec_env(venv)
    env.seed(3)
    obs = env.reset()
    assert obs["input_ids"].shape == (2, 48)
    assert [set(info) for info in env.reset_infos] == [{"sample_id"}] * 2
    obs, rewards, dones, infos = env.step(np.array([300, 301]))
    assert infos == [{}, {}]
    assert rewards.dtype == np.float32
    assert not dones.any()
    obs, rewards, dones, infos = env.step(np.array([chat_tokenizer.eos_token_id, 300]))
    assert dones.tolist() == [True, False]
    assert infos[1] == {}
    final = infos[0]
    assert final["terminal_observation"]["agent_mask"].sum() == 2
    assert obs["agent_mask"][0].sum() == 0
    assert final["TimeLimit.truncated"] is False
    assert final["episode"]["l"] == 2
    assert final["episode"]["r"] == rewards[0]
    assert final["episode_record"]["stop_reason"] == "eos"
    assert isinstance(final["metrics"]["length"], float)
    assert env.reset_infos[0].keys() == {"sample_id"}


def test_infos_are_those_of_a_single_environment(guess, chat_tokenizer):
    """Also out of Gymnasium's own SyncVectorEnv."""
    options = {"tokenizer": chat_tokenizer, "max_context": 120}
    sync = SyncVectorEnv([lambda: TokenEnv(guess, **options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    ours, theirs = sb3_vec_env(TokenVectorEnv(guess, 3, **options)), sb3_vec_env(sync)
    env = TokenEnv(guess, **options)
    for vec in (ours, theirs):
        vec.seed(5)
        vec.reset()
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(100):
        tokens = rng.integers(len(chat_tokenizer), size=3)
        tokens[rng.random(3) < 0.3] = chat_tokenizer.eos_token_id
        _, _, terminated, _, info = env.step(tokens[0])
        for vec in (ours, theirs):
            got = vec.step(tokens)[3][0]
            assert {key: got[key] for key in info} == info
            assert set(got) - set(info) in (set(), {"episode", "terminal_observation", "TimeLimit.truncated"})
        if terminated:
            env.reset()


def test_unscored_episodes_have_no_episode_info(capitals, chat_tokenizer):
    env = sb3_vec_env(TokenVectorEnv(capitals, 2, reward=lambda response: 1 / len(response), tokenizer=chat_tokenizer))
    env.reset()
    eos = chat_tokenizer.eos_token_id
    env.step(np.array([eos, 300]))
    *_, infos = env.step(np.array([eos, eos]))
    assert "episode" not in infos[0]
    assert "ZeroDivisionError" in infos[0]["score_status"]
    assert infos[1]["episode"]["r"] > 0
    assert infos[1]["episode"]["l"] == 2


def test_truncated_episodes(capitals, chat_tokenizer):
    env = sb3_vec_env(TokenVectorEnv(capitals, 1, tokenizer=chat_tokenizer, max_episode_steps=2))
    env.reset()
    env.step(np.array([300]))
    *_, dones, infos = env.step(np.array([300]))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 2
    assert infos[0]["terminal_observation"]["agent_mask"].sum() == 2


def test_a_truncated_episode_with_a_failure_has_no_episode_info(capitals, chat_tokenizer):
    @textgym.reward(when="token")
    def fails_once(response):
        return 1 / (len(response) - 1)

    env = sb3_vec_env(TokenVectorEnv(capitals, 1, reward=fails_once, tokenizer=chat_tokenizer, max_episode_steps=2))
    env.reset()
    x = np.array(chat_tokenizer.encode("x"))
    assert "ZeroDivisionError" in env.step(x)[3][0]["score_status"]
    info = env.step(x)[3][0]
    assert "ZeroDivisionError" in info["score_status"]
    assert "episode" not in info
    env.step(chat_tokenizer.convert_tokens_to_ids(["y"]) * np.ones(1, int))
    env.reset()
    env.step(np.array([300]))
    assert env.step(np.array([300]))[3][0]["episode"]["l"] == 2


def test_seeds_and_options(venv):
    env = sb3_vec_env(venv)
    env.seed(4)
    first = env.reset()
    env.seed(4)
    assert (env.reset()["input_ids"] == first["input_ids"]).all()
    env.set_options([{"sample": 2}, {"sample": 3}])
    env.reset()
    assert [info["sample_id"] for info in env.reset_infos] == ["Japan", "Italy"]
    env.set_options({"sample": 1})
    env.reset()
    assert [info["sample_id"] for info in env.reset_infos] == ["Germany", "Germany"]


def test_attributes_and_methods(venv, chat_tokenizer):
    env = sb3_vec_env(venv)
    env.reset()
    assert is_masking_supported(env)
    masks = get_action_masks(env)
    assert masks.shape == (2, len(chat_tokenizer))
    assert not masks[:, chat_tokenizer.pad_token_id].any()
    assert env.env_method("action_masks", indices=1)[0].shape == (len(chat_tokenizer),)
    assert env.get_attr("task", indices=[0]) == [venv.task]
    assert not env.has_attr("no_such_thing")
    assert env.has_attr("tokenizer")
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    env.set_attr("copy", False)
    assert venv.copy is False
    with pytest.raises(ConfigurationError, match="all environments at once"):
        env.set_attr("copy", True, indices=[0])
    env.close()


def test_an_attribute_that_can_be_called_is_not_called(capitals, chat_tokenizer):
    make = [lambda: gym.wrappers.TimeLimit(TokenEnv(capitals, tokenizer=chat_tokenizer, max_context=48), 9)] * 3
    env = sb3_vec_env(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP))
    assert env.get_attr("tokenizer", indices=[0, 2]) == [chat_tokenizer] * 2
    assert env.has_attr("tokenizer")
    assert not env.has_attr("no_such_thing")
    assert env.env_method("action_masks", indices=1)[0].shape == (len(chat_tokenizer),)


def test_evaluation(venv):
    env = sb3_vec_env(venv)
    agent = stable_baselines3.PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, n_epochs=1)
    mean, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=4)
    assert mean == 0.0
    callback = EvalCallback(env, n_eval_episodes=2, eval_freq=8, verbose=0)
    agent.learn(32, callback=callback)
    assert len(callback.evaluations_results) == 0
    assert callback.last_mean_reward == 0.0
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(env)


def test_other_vector_environments_are_refused():
    with pytest.raises(ConfigurationError, match="reset in the same step"):
        sb3_vec_env(SyncVectorEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(ConfigurationError, match=r"takes a gymnasium.vector.VectorEnv"):
        sb3_vec_env(gym.make("CartPole-v1"))
