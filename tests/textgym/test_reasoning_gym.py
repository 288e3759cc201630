import math
import pickle
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import textgym
from textgym import Episode, TextEnv, TokenEnv, TokenVectorEnv, Turn
from textgym.errors import ConfigurationError, DataError, PromptTooLongError, TextGymWarning
from textgym.wrappers import ReasoningGymTask, reasoning_gym
from textgym.wrappers.procedural import EXECUTING
from textgym.wrappers.third_party import optional_package

pytest.importorskip("reasoning_gym", reason="pip install 'textgym[reasoning-gym]'")

NAMES = sorted(set(optional_package("reasoning_gym.factory", "reasoning-gym").DATASETS) - {"composite"})
SLOW = {"futoshiki", "knight_swap", "sokoban", "zebra_puzzles"}


def say(env, text):
    return env.step_turn(env.setting.renderer.reply_ids(text))


def states():
    return random.getstate(), np.random.get_state()[1].tolist()


def score(task, reply, index=0):
    sample = task.samples("all")[index]
    (score,) = task.reward.score_at("episode", [Episode(sample, [Turn("assistant", reply)])])
    return score


def composite(**arguments):
    spec = optional_package("reasoning_gym.composite", "reasoning-gym").DatasetSpec
    return ReasoningGymTask("composite", datasets=[spec(name, 1, {}) for name in arguments.pop("names")], **arguments)


@pytest.mark.parametrize(
    "name", ["leg_counting", "list_functions", "prime_factorization", "graph_color", "word_sorting"]
)
def test_check_env(name, chat_tokenizer):
    textgym.check_env(reasoning_gym(name, tokenizer=chat_tokenizer, size=30))


def test_check_env_at_turn_level():
    env = reasoning_gym("leg_counting", level="turn", size=30)
    assert isinstance(env, TextEnv)
    textgym.check_env(env)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reasoning-gym generates")
@pytest.mark.parametrize("name", NAMES)
def test_every_data_set(name, tokenizer, tmp_path):
    env = reasoning_gym(
        name,
        split="all",
        size=4 if name in SLOW else 12,
        tokenizer=tokenizer,
        allow_code_execution=name in EXECUTING,
    )
    textgym.check_env(env)
    reward, sample = env.setting.reward, env.samples[0]
    if sample.references:
        assert score(env.task, f" {sample.references[0]}\n").value == 1.0
    marker = tmp_path / "marker"
    reply = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    pickle.loads(pickle.dumps(reward)).score_at("episode", [Episode(sample, [Turn("assistant", reply)])])
    assert marker.exists() == (name in EXECUTING)


def test_a_mixture_of_data_sets(tokenizer):
    """The one data set that :func:`test_every_data_set` cannot make without being told of which others."""
    textgym.check_env(TokenEnv(composite(names=["gcd", "leg_counting"], size=30), tokenizer=tokenizer))


def test_an_episode(tokenizer):
    env = reasoning_gym("leg_counting", tokenizer=tokenizer, split="all", size=20, seed=3)
    before, info = env.reset(seed=0, options={"sample": 4})
    sample = env.samples[4]
    assert info["sample_id"] == sample.id
    assert sample.id.startswith("leg_counting/")
    assert sample.references == (str(sample.meta["total_legs"]),)
    assert tokenizer.decode(before["input_ids"][: before["attention_mask"].sum()]) == sample.prompt
    _, rewards, terminated, _, info = say(env, sample.references[0])
    assert rewards.tolist() == [0.0] * (len(rewards) - 1) + [1.0]
    assert terminated
    assert info["reward_parts"] == {"reasoning_gym": 1.0}
    assert info["metrics"] == {"solved": 1.0}


def test_worked_scores():
    task = ReasoningGymTask("gcd", size=20)
    answer = task.samples("all")[0].references[0]
    assert score(task, answer).value == 1.0
    assert score(task, f"\n {answer} ").value == 1.0
    assert score(task, f"answer: {answer}").value == len(answer) / len(f"answer: {answer}")
    assert score(task, "x").value == 0.0
    assert score(task, "").value == 0.0
    sample = task.samples("all")[0]
    episodes = [Episode(sample, reward_parts={"reasoning_gym": value}) for value in (1.0, 0.5, 1.0, 0.0)]
    assert task.metrics(episodes) == {"solved": 0.5}
    assert task.metrics([Episode(sample, reward_parts={"other": 1.0})]) == {}


def test_what_a_scorer_raises_is_a_failed_score():
    task = ReasoningGymTask("boxnet", size=5)
    failed = score(task, "0")
    assert failed.value is None
    assert failed.status == "reasoning_gym: TypeError: 'int' object is not iterable"


def test_replies_without_numbers_are_wrong_factorizations():
    task = ReasoningGymTask("prime_factorization", size=10)
    answer = task.samples("all")[0].references[0]
    assert [score(task, reply).value for reply in (answer, "7919", "no idea")] == [1.0, 0.01, 0.0]
    mixed = composite(names=["prime_factorization", "gcd"], size=20)
    sources = [sample.meta["source_dataset"] for sample in mixed.samples("all")]
    assert score(mixed, "no idea", sources.index("prime_factorization")).value == 0.0
    assert score(mixed, "no idea", sources.index("gcd")).value == 0.0


@pytest.mark.parametrize("name", ["leg_counting", "codeio", "list_functions", "pool_matrix", "acre"])
def test_same_arguments_same_samples_and_nothing_global_is_touched(name):
    before = states()
    first = ReasoningGymTask(name, size=10, seed=1)
    assert states() == before
    random.seed(1)
    np.random.seed(1)
    second = ReasoningGymTask(name, size=10, seed=1)
    other = ReasoningGymTask(name, size=10, seed=10**6)

    def questions(task):
        return [(sample.prompt, sample.references) for sample in task.samples("all")]

    assert questions(first) == questions(second) != questions(other)
    before = states()
    for index in range(10):
        score(first, "[1, 2]", index)
    assert states() == before


@pytest.mark.parametrize(("hash_seed", "warns"), [(None, True), ("random", True), ("0", False)])
def test_samples_that_depend_on_the_process_are_reported(monkeypatch, hash_seed, warns):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if hash_seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
    expected = pytest.warns(TextGymWarning, match="generates ransom_note otherwise in every process; set .*HASHSEED=0")
    with expected if warns else nullcontext():
        ReasoningGymTask("ransom_note", size=3)


def test_no_question_is_in_two_splits():
    task = ReasoningGymTask("coin_flip", size=300)  # many questions come up more than once
    prompts = {split: [s.prompt for s in task.samples(split)] for split in ("train", "validation", "test")}
    everything = [sample.prompt for sample in task.samples("all")]
    assert sum(map(len, prompts.values())) == len(everything) == 300
    assert len(set(everything)) < 300
    assert sum(len(set(part)) for part in prompts.values()) == len(set(everything))
    assert len(prompts["train"]) > 200
    with pytest.raises(DataError, match=r"reasoning-gym's gcd has no samples in the split 'dev'"):
        ReasoningGymTask("gcd", size=5).samples("dev")


def test_data_sets_without_an_answer_have_no_references():
    task = ReasoningGymTask("rush_hour", size=5)
    assert all(sample.references == () for sample in task.samples("all"))
    assert task.demonstration(task.samples("all")[0]) is None
    assert math.isfinite(score(task, "A+1").value)


def test_scorers_that_run_replies_need_permission(tmp_path):
    with pytest.raises(ConfigurationError, match=r"scorer of n_queens runs every reply .* allow_code_execution=True"):
        reasoning_gym("n_queens")
    with pytest.raises(ConfigurationError, match="scorer of countdown runs"):
        composite(names=["countdown", "gcd"])
    task = ReasoningGymTask("spiral_matrix", size=3, allow_code_execution=True)
    marker = tmp_path / "marker"
    score(task, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    assert marker.exists()


def test_default_budgets_fit(tokenizer, monkeypatch):
    env = reasoning_gym("leg_counting", tokenizer=tokenizer, size=50)
    longest = max(len(env.setting.prompt_ids(i)) for i in range(len(env.samples)))
    assert env.setting.max_new_tokens == 64
    assert env.setting.max_context == longest + 64
    assert reasoning_gym("leg_counting", tokenizer=tokenizer, size=50, max_context=300).setting.max_context == 300
    env = reasoning_gym("leg_counting", tokenizer=tokenizer, size=50, max_new_tokens=5)
    assert env.setting.max_context == longest + 5
    task = ReasoningGymTask("futoshiki", size=2)
    answers = [sample.references[0] for sample in task.samples("all")]
    assert task.max_new_tokens == max(len(answer.encode()) for answer in answers) + 2 > 100
    monkeypatch.setattr(tokenizer, "model_max_length", longest + 10)
    assert reasoning_gym("leg_counting", tokenizer=tokenizer, size=50).setting.max_context == longest + 10
    monkeypatch.setattr(tokenizer, "model_max_length", longest)
    with pytest.raises(PromptTooLongError, match=rf"1 of \d+ prompts of leg_counting .* in the {longest} tokens"):
        reasoning_gym("leg_counting", tokenizer=tokenizer, size=50)
    assert reasoning_gym("leg_counting", tokenizer=tokenizer, size=50, max_context=longest + 1) is not None


def test_several_at_once_and_by_id(tokenizer):
    venv = reasoning_gym("leg_counting", num_envs=3, tokenizer=tokenizer, size=30, min_animals=2, max_animals=2)
    assert isinstance(venv, TokenVectorEnv)
    assert venv.num_envs == 3
    assert all(len(sample.meta["animals"]) == 2 for sample in venv.samples)
    textgym.register("test/Legs-v0", task=ReasoningGymTask, name="leg_counting", size=30, tokenizer=tokenizer)
    assert textgym.make_vec("test/Legs-v0", num_envs=2).num_envs == 2
    env = textgym.make("test/Legs-v0", split="all", max_animals=4, level="turn")
    assert len(env.unwrapped.samples) == 30


def test_a_reward_of_ones_own(tokenizer):
    env = reasoning_gym("gcd", tokenizer=tokenizer, size=20, reward=lambda response: float(len(response)))
    env.reset(seed=0)
    *_, info = say(env, "four")
    assert info["episode_record"]["reward"] == 4.0
    assert info["metrics"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "leg_count"}, r"no data set of reasoning-gym 'leg_count'\. Did you mean 'leg_counting'"),
        (
            {"min_animals": 0},
            r"leg_counting refuses its arguments: min_animals must be positive\. It takes min_animals,",
        ),
        ({"legs": 4}, r"refuses its arguments: .*unexpected keyword argument 'legs'"),
        ({"size": 0}, "size=0; it is a whole number, at least 1"),
        ({"seed": -1}, "seed=-1; it is a whole number, at least 0"),
        ({"seed": 1.5}, r"seed=1\.5; it is"),
        ({"level": "word"}, "level='word'; it is 'token' or 'turn'"),
        ({"level": "turn", "num_envs": 2}, "num_envs=2: only token level has a vector form"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        reasoning_gym(**{"name": "leg_counting", **arguments})


def test_the_list_of_scorers_that_run_replies_is_complete():
    """By reading the package: every scorer that calls eval or parse_expr on the reply."""
    root = Path(optional_package("reasoning_gym", "reasoning-gym").__file__).parent
    suspects = set()
    for path in root.rglob("*.py"):
        _, found, after = path.read_text(encoding="utf-8").partition("def score_answer")
        if found and ("eval(answer)" in after or "parse_expr(answer" in after):
            suspects.add(path.stem)
    assert suspects == EXECUTING
