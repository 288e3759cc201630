import json
import sys

import pytest
from lengths import longest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.code import SLIP_SHARE, Code
from textgym.errors import DataError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

SPLITS = ("warm_start", "train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return Code()


def played(task, sample, reply):
    """A finished episode, with its score."""
    episode = Episode(sample, [Turn("assistant", reply)])
    (score,) = task.reward.score([episode])
    assert score.status == "ok"
    episode.reward, episode.reward_parts = score.value, score.parts
    return episode


def values(task, samples, replies):
    episodes = [Episode(s, [Turn("assistant", reply)]) for s, reply in zip(samples, replies, strict=True)]
    return [score.value for score in task.reward.score(episodes)]


def test_samples(task):
    sizes = {split: len(task.samples(split)) for split in SPLITS}
    assert sum(sizes.values()) == len({sample.prompt for sample in task.samples("all")}) == 5000
    assert sizes["train"] > 1900
    assert min(sizes.values()) > 450
    for sample in task.samples("all"):
        header, docstring, end = sample.prompt.split("\n")
        assert header.startswith(f"def {sample.meta['entry_point']}(")
        assert docstring.startswith('    """')
        assert docstring.endswith('."""')
        assert end == ""
        assert "{" not in sample.prompt + "".join(sample.references)
        assert 1 <= len(sample.references) <= 2
        assert all(body.startswith("    ") for body in (*sample.references, sample.meta["handed_in"]))


def test_every_problem_has_four_tests_that_no_constant_passes(task):
    for sample in task.samples("all"):
        tests = sample.meta["tests"]
        assert len({repr(arguments) for arguments, _ in tests}) == 4
        assert len({repr(value) for _, value in tests}) >= 2
        assert len(tests[0][0]) == sample.prompt.partition("\n")[0].count(",") + 1


def test_the_same_problems_every_time(task):
    first = task.samples("all")[0]
    from textgym.envs.code import builtin_problems

    builtin_problems.cache_clear()
    assert Code().samples("all")[0] == first


def test_prompts_and_replies_are_short(task):
    samples = task.samples("all")[::4]
    assert longest([sample.prompt for sample in samples]) <= 60
    replies = [reply for sample in samples for reply in (*sample.references, *task.demonstration(sample))]
    assert longest(replies) < task.max_new_tokens


def test_references_pass_and_a_third_of_the_demonstrations_do_not(task):
    samples = task.samples("all")
    right = [task.demonstration(sample)[0] in sample.references for sample in samples]
    assert abs(1 - sum(right) / len(samples) - SLIP_SHARE) < 0.03
    some = task.samples("test")[::4]
    assert values(task, some, [sample.references[0] for sample in some]) == [1.0] * len(some)
    assert values(task, some, [sample.references[-1] for sample in some]) == [1.0] * len(some)
    scores = values(task, some, [task.demonstration(sample)[0] for sample in some])
    passed = [task.demonstration(sample)[0] in sample.references for sample in some]
    assert [score == 1 for score in scores] == passed
    assert 0.65 < sum(scores) / len(scores) < 0.85


@pytest.mark.slow
def test_all_references_pass_and_all_slips_fail(task):
    samples = task.samples("all")
    assert values(task, samples, [sample.references[0] for sample in samples]) == [1.0] * 5000
    assert values(task, samples, [sample.references[-1] for sample in samples]) == [1.0] * 5000
    slips = [sample for sample in samples if sample.meta["handed_in"] not in sample.references]
    assert len(slips) > 1500
    assert max(values(task, slips, [sample.meta["handed_in"] for sample in slips])) <= 0.75


def test_demonstrations_of_other_data_are_their_references():
    rows = [
        {"id": str(i), "prompt": "def f(x):\n", "references": "    return x", "entry_point": "f", "tests": [[[i], i]]}
        for i in range(20)
    ]
    task = Code(rows)
    assert task.demonstration(task.samples("train")[0]) == ["    return x"]
    assert task.max_new_tokens == 400
    assert task.demonstration(Sample("a", "def f(x):\n")) is None


def test_a_lesson_is_the_body_as_it_stands(task):
    sample = task.samples("train")[0]
    assert task.lesson(sample) == [sample.references[0]]
    assert task.lesson(Sample("a", "def f(x):\n")) is None


SAMPLE = Sample(
    "a", "def f(x):\n    '''x + 1'''\n", (), {"entry_point": "f", "tests": [[[i], i + 1] for i in range(4)]}
)


def test_metrics_of_worked_episodes(task):
    replies = ["    return x + 1", "    return 1 + 0 * x", "    return x +", "    return", ""]
    episodes = [played(task, SAMPLE, reply) for reply in replies]
    assert [episode.reward for episode in episodes] == [1.0, 0.25, 0.0, 0.0, 0.0]
    assert task.metrics(episodes) == pytest.approx(
        {"pass@1": 0.2, "tests_passed": 1.25 / 5, "syntax_error_rate": 1 / 5},
    )
    assert task.metrics(episodes[:1]) == {"pass@1": 1.0, "tests_passed": 1.0, "syntax_error_rate": 0.0}
    assert task.metrics([]) == task.metrics([Episode(SAMPLE, [Turn("assistant", "")])]) == {}


def test_a_reward_of_ones_own_needs_no_sandbox(monkeypatch):
    monkeypatch.setattr("textgym.envs.code.UnitTests", None)
    textgym.register("tests/Code-v0", task="textgym.envs.code:Code")
    env = textgym.make("tests/Code-v0", reward=lambda response: float("return" in response), level="turn")
    env.reset(seed=0)
    assert env.step("    return 1")[1] == 1.0


@pytest.mark.parametrize("level", ["token", "turn"])
def test_check_env(level):
    textgym.register("tests/Code-v0", task="textgym.envs.code:Code")
    textgym.check_env(textgym.make("tests/Code-v0", level=level))


# Real data


@pytest.fixture(scope="module")
def humaneval():
    return Code(shared_data("humaneval/HumanEval.jsonl"), "humaneval")


def test_humaneval_every_row(humaneval):
    samples = humaneval.samples("all")
    assert len(samples) == 164
    assert {sample.id for sample in samples} == {f"HumanEval/{i}" for i in range(164)}
    for sample in samples:
        assert set(sample.meta) == {"entry_point", "tests"}
        assert f"def {sample.meta['entry_point']}(" in sample.prompt
        assert "def check(candidate):" in sample.meta["tests"]
        assert len(sample.references) == 1


def test_humaneval_canonical_solutions_pass_and_wrong_ones_do_not(humaneval):
    samples = humaneval.samples("all")
    assert values(humaneval, samples, [sample.references[0] for sample in samples]) == [1.0] * 164
    assert max(values(humaneval, samples, ["    return 12345\n"] * 164)) == 0.0
    assert max(values(humaneval, samples, [""] * 164)) == 0.0


def test_humaneval_replies_are_not_cut_by_the_stop_strings(humaneval):
    for sample in humaneval.samples("all"):
        assert not any(stop in sample.references[0].rstrip() for stop in humaneval.stop), sample.id


def test_rows_that_are_none_of_humaneval(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"task_id": "a", "prompt": "def f():", "canonical_solution": " pass"}))
    with pytest.raises(DataError, match=r"line 1: this is no row of openai/openai_humaneval: no column 'test'"):
        Code(file, "humaneval")
