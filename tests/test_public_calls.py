"""The calls that others will write, as they will write them."""

import json

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import textgym
from textgym import Sample, Task
from textgym.agents import PPO, CausalLMPolicy


class Capitals(Task):
    def samples(self, split):
        return [Sample(id="fr", prompt="The capital of France is", references=("Paris",))]


def mine(response, references):
    return float(response.strip() in references)


@pytest.fixture(autouse=True)
def capitals():
    textgym.register(
        "demo/Capitals-v0",
        task=Capitals,
        reward=lambda response, references: float(references[0] in response),
        max_new_tokens=8,
        max_context=64,
    )


@pytest.fixture
def venv():
    return textgym.make_vec("demo/Capitals-v0", num_envs=8)


def agent_on(env, **kwargs):
    settings = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "kl_coef": 0.05, "device": "cpu", **kwargs}
    return PPO("CausalLMPolicy", env, **settings)


def test_environments():
    env = gym.make("demo/Capitals-v0")
    env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(5)
    assert obs["input_ids"].shape == (64,)
    assert isinstance(reward, float)
    assert not terminated
    assert not truncated
    for make in (textgym.make_vec, gym.make_vec):
        assert make("demo/Capitals-v0", num_envs=3).reset(seed=0)[0]["input_ids"].shape == (3, 64)
    talk = gym.make("demo/Capitals-v0", level="turn")
    assert talk.reset(seed=0)[0] == "The capital of France is"
    assert talk.step(" Paris.")[1:3] == (1.0, True)
    assert info is not None


def test_a_file_as_a_task(tmp_path):
    rows = [{"question": f"Who wrote Faust, part {i}?", "answer": ["Goethe", "J. W. Goethe"]} for i in range(30)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = {"prompt": "question", "references": "answer"}
    textgym.register("demo/Mine-v0", task=tmp_path / "questions.jsonl", columns=columns, reward=mine)
    try:
        env = textgym.make("demo/Mine-v0", level="turn")
        assert "Faust" in env.reset(seed=1)[0]
        assert env.step(" Goethe")[1] == 1.0
    finally:
        del gym.registry["demo/Mine-v0"]


@pytest.mark.filterwarnings("ignore:rich is experimental")  # SB3's own progress bar
def test_an_agents_life(venv, tmp_path):
    agent = agent_on(venv)
    agent.learn(256, progress_bar=True)
    agent.save(tmp_path / "agent.zip")
    again = PPO.load(tmp_path / "agent.zip", env=venv)
    agent.policy.save_pretrained(tmp_path / "folder")
    obs, _ = venv.reset(seed=0)
    actions, state = agent.predict(obs, deterministic=True)
    np.testing.assert_array_equal(actions, again.predict(obs, deterministic=True)[0])
    assert state is None
    assert (tmp_path / "folder" / "tokenizer.json").is_file()
    mean, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=4, warn=False)
    assert mean >= 0
    folder = agent_on(venv, policy_kwargs={"model": tmp_path / "folder"})
    np.testing.assert_array_equal(actions, folder.predict(obs, deterministic=True)[0])


def test_callbacks_and_loggers(venv, tmp_path):
    evaluation = EvalCallback(
        textgym.sb3_vec_env(textgym.make_vec("demo/Capitals-v0", num_envs=8)),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=2.0),
        n_eval_episodes=4,
        eval_freq=16,
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    agent = agent_on(venv, tensorboard_log=str(tmp_path / "tensorboard"))
    agent.set_logger(stable_baselines3.common.logger.configure(str(tmp_path / "log"), ["csv", "json", "tensorboard"]))
    agent.learn(256, callback=[evaluation, CheckpointCallback(16, str(tmp_path / "checkpoints"))])
    assert (tmp_path / "best" / "best_model.zip").is_file()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert "rollout/kl" in (tmp_path / "log" / "progress.csv").read_text().splitlines()[0]
    assert list((tmp_path / "log").glob("events*"))
    agent.logger.close()
    PPO.load(tmp_path / "best" / "best_model.zip")


@pytest.mark.parametrize("make", ["id", "env", "dummy"])
def test_any_environment_sb3_takes(make):
    envs = {
        "id": lambda: "demo/Capitals-v0",
        "env": lambda: gym.make("demo/Capitals-v0"),
        "dummy": lambda: DummyVecEnv([lambda: gym.make("demo/Capitals-v0")] * 4),
    }
    agent = agent_on(envs[make](), n_steps=32, batch_size=32)
    agent.learn(64)
    assert agent.num_timesteps >= 64


def test_stock_sb3():
    dummy = DummyVecEnv([lambda: gym.make("demo/Capitals-v0")] * 2)
    stable_baselines3.PPO(CausalLMPolicy, dummy, n_steps=16, batch_size=32, n_epochs=1, device="cpu").learn(32)
    stable_baselines3.PPO("MultiInputPolicy", gym.make("demo/Capitals-v0"), n_steps=64).learn(64)
    PPO("MlpPolicy", "CartPole-v1", n_steps=500, batch_size=100, device="cpu").learn(1000)
