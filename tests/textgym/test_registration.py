import subprocess
import sys
import types
from importlib import metadata

import gymnasium as gym
import numpy as np
import pytest

import textgym
from textgym import Sample, Task, TextEnv, TokenEnv, TokenVectorEnv
from textgym.errors import ConfigurationError, DataError, UnknownEnvironmentError


def test_the_calls_of_the_readme(tokenizer):
    class Capitals(Task):
        def samples(self, split):
            return [Sample(id="fr", prompt="The capital of France is", references=("Paris",))]

    textgym.register(
        "demo/Capitals-v0",
        task=Capitals,
        reward=lambda response, references: float(references[0] in response),
        max_new_tokens=8,
    )
    env = gym.make("demo/Capitals-v0", tokenizer=tokenizer)
    env.reset(seed=0)
    _obs, reward, terminated, truncated, info = env.step(300)
    assert isinstance(env.unwrapped, TokenEnv)
    assert env.unwrapped.setting.max_new_tokens == 8
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    for make_vec in (textgym.make_vec, gym.make_vec):
        venv = make_vec("demo/Capitals-v0", num_envs=64, tokenizer=tokenizer)
        assert isinstance(venv, TokenVectorEnv)
        assert venv.num_envs == 64
        assert venv.reset(seed=0)[0]["input_ids"].shape == (64, 1024)
    tenv = gym.make("demo/Capitals-v0", level="turn")
    assert isinstance(tenv.unwrapped, TextEnv)
    tenv.reset(seed=0)
    assert tenv.step("It is Paris.")[1] == 1.0
    assert gym.spec("demo/Capitals-v0").kwargs == {}
    assert "demo/Capitals-v0" in gym.pprint_registry(disable_print=True)
    assert "demo/Capitals-v0" in textgym.registered_ids()


def test_a_data_file_as_a_task(tokenizer, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f'{{"question": "Question {i}?", "answer": "{i}"}}\n' for i in range(50)))
    textgym.register(
        "demo/Mine-v0",
        task=str(path),
        columns={"prompt": "question", "references": "answer"},
        reward=lambda response, references: float(response == references[0]),
    )
    sizes = {
        split: len(gym.make("demo/Mine-v0", tokenizer=tokenizer, split=split).unwrapped.samples)
        for split in ("train", "validation", "test", "all")
    }
    assert sizes["all"] == 50 == sizes["train"] + sizes["validation"] + sizes["test"]
    assert sizes["train"] > 30
    with pytest.raises(DataError, match="no samples in the split 'dev'"):
        textgym.make("demo/Mine-v0", tokenizer=tokenizer, split="dev")


def test_arguments_at_make_override_the_defaults(capitals, guess, tokenizer, chat_tokenizer):
    textgym.register(
        "demo/A-v0", task=type(capitals), reward=lambda response: 1.0, tokenizer=tokenizer, max_new_tokens=3
    )
    env = textgym.make("demo/A-v0").unwrapped
    assert (env.setting.max_new_tokens, env.tokenizer) == (3, tokenizer)
    data = [Sample("x", "Hello", ("there",))]
    env = textgym.make(
        "demo/A-v0",
        reward=lambda response: 2.0,
        data={"train": data, "test": [Sample("y", "Bye")]},
        split="test",
        tokenizer=chat_tokenizer,
        max_new_tokens=4,
        max_context=50,
        format="plain",
    ).unwrapped
    env.reset(seed=0)
    assert env.samples == [Sample("y", "Bye")]
    assert (env.setting.max_new_tokens, env.setting.max_context) == (4, 50)
    assert env.setting.renderer.format == "plain"
    assert env.step(chat_tokenizer.eos_token_id)[1] == 2.0
    assert textgym.make("demo/A-v0").unwrapped.samples == type(capitals)().samples("train")


def test_tasks_of_every_form(capitals, tokenizer, monkeypatch):
    def factory(country="France"):
        task = type(capitals)()
        task.capitals = ((country, "?"),)
        return task

    class WithData(type(capitals)):
        def __init__(self, data=None, columns=None):
            self.data, self.columns = data, columns

    module = types.ModuleType("some_package")
    module.WithData = WithData
    monkeypatch.setitem(sys.modules, "some_package", module)
    textgym.register("demo/Instance-v0", task=capitals)
    textgym.register("demo/Factory-v0", task=factory, country="Spain")
    textgym.register("demo/String-v0", task="some_package:WithData")
    textgym.register("demo/List-v0", task=[Sample(str(i), f"{i}") for i in range(30)], reward=lambda response: 0.0)
    assert textgym.make("demo/Instance-v0", tokenizer=tokenizer).unwrapped.samples[0].id == "France"
    assert textgym.make("demo/Factory-v0", tokenizer=tokenizer).unwrapped.samples[0].id == "Spain"
    assert textgym.make("demo/Factory-v0", tokenizer=tokenizer, country="Peru").unwrapped.samples[0].id == "Peru"
    task = textgym.make("demo/String-v0", tokenizer=tokenizer, data="x.csv", columns={"prompt": "q"}).unwrapped.task
    assert (task.data, task.columns) == ("x.csv", {"prompt": "q"})
    assert len(textgym.make("demo/List-v0", tokenizer=tokenizer, split="all").unwrapped.samples) == 30
    other = textgym.make("demo/Instance-v0", tokenizer=tokenizer, data=[Sample("z", "Z")], split="all").unwrapped
    assert other.samples == [Sample("z", "Z")]
    assert len(capitals.samples("train")) == 4  # the instance itself is left alone


def test_unknown_arguments(capitals, tokenizer):
    textgym.register("demo/Class-v0", task=type(capitals))
    textgym.register("demo/Instance-v0", task=capitals)
    for id in ("demo/Class-v0", "demo/Instance-v0"):
        with pytest.raises(ConfigurationError, match=r"takes no argument 'max_tokens'; .*max_new_tokens"):
            textgym.make(id, tokenizer=tokenizer, max_tokens=3)
    with pytest.raises(ConfigurationError, match="without data"):
        textgym.make("demo/Class-v0", tokenizer=tokenizer, columns={"prompt": "q"})
    with pytest.raises(ConfigurationError, match="level='word'"):
        textgym.make("demo/Class-v0", level="word")
    with pytest.raises(ConfigurationError, match="only token level has a vector form"):
        textgym.make_vec("demo/Class-v0", level="turn")
    textgym.register("demo/NoTask-v0", task=lambda: 3)
    with pytest.raises(ConfigurationError, match=r"made 3, which is no textgym\.Task"):
        textgym.make("demo/NoTask-v0", tokenizer=tokenizer)


def test_unknown_ids():
    for make in (textgym.make, textgym.make_vec):
        with pytest.raises(UnknownEnvironmentError, match="Did you mean 'textgym/KnowledgeQA-v0'"):
            make("textgym/KnowlegeQA-v0")
        with pytest.raises(UnknownEnvironmentError, match=r"There are .*'textgym/KnowledgeQA-v0'"):
            make("zzz")


def test_gymnasiums_own_arguments(capitals, tokenizer):
    textgym.register("demo/Short-v0", task=capitals, tokenizer=tokenizer, max_episode_steps=2, reward_threshold=0.9)
    assert gym.spec("demo/Short-v0").reward_threshold == 0.9
    env = gym.make("demo/Short-v0")
    venv = gym.make_vec("demo/Short-v0", num_envs=2)
    env.reset(seed=0)
    venv.reset(seed=0)
    for truncated in (False, True):
        assert env.step(300)[3] is truncated
        assert venv.step(np.array([300, 300]))[3].tolist() == [truncated] * 2


def test_a_reward_with_a_model_is_never_copied(capitals, tokenizer):
    class Heavy(textgym.Reward):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def score(self, episodes):
            return [textgym.Score(1.0) for _ in episodes]

    textgym.register("demo/Heavy-v0", task=capitals, reward=Heavy(), tokenizer=tokenizer)
    gym.make("demo/Heavy-v0")
    gym.make_vec("demo/Heavy-v0", num_envs=2)
    gym.make_vec("demo/Heavy-v0", num_envs=2, vectorization_mode="sync")


def test_third_parties_register_by_entry_point(monkeypatch, tokenizer, capitals):
    module = types.ModuleType("acme_tasks")
    module.Trivia = type(capitals)
    monkeypatch.setitem(sys.modules, "acme_tasks", module)
    points = [
        metadata.EntryPoint("acme/Trivia-v0", "acme_tasks:Trivia", "textgym.envs"),
        metadata.EntryPoint("no id at all!", "acme_tasks:Trivia", "textgym.envs"),
    ]
    monkeypatch.setattr("textgym.registration.entry_points", lambda group: points)
    monkeypatch.setattr("textgym.registration.BUILTIN", {})
    with pytest.warns(UserWarning, match="no id at all!"):
        textgym.registration.register_builtin_and_plugins()
    assert textgym.make("acme/Trivia-v0", tokenizer=tokenizer).unwrapped.samples[0].id == "France"


def test_import_is_light():
    heavy = ("torch", "transformers", "stable_baselines3", "datasets", "textgym.envs.knowledge_qa")
    heavy += ("asyncio", "concurrent.futures", "sqlite3", "ssl")  # some rewards need them
    code = (
        f"import sys, textgym, textgym.rewards; print([m for m in {heavy} if m in sys.modules], "
        "'textgym/KnowledgeQA-v0' in textgym.registered_ids())"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] True"


@pytest.mark.parametrize("module", [textgym, textgym.rewards])
def test_public_names(module):
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
