import socket
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest

import textgym
from textgym import Episode, Sample, Score, Turn
from textgym.errors import RewardError
from textgym.rewards import lexical
from textgym.rewards.evaluate_metric import Evaluate, as_metric

TEXT = datasets.Value("string")

SCRIPT = """
import datasets
import evaluate


class Overlap(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = zip(predictions, references)
        return {"overlap": sum(len(set(p.split()) & set(r.split())) for p, r in pairs) / len(predictions)}
"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No network, and evaluate's caches in a folder of the test's."""
    folder = tmp_path_factory.mktemp("evaluate")

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was asked for: {args}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(sys, "path", [*sys.path])
        yield


def metric(result, references=True, prediction=TEXT, in_memory=True, **more):
    """A metric whose result a function computes."""
    features = {"predictions": prediction, **more}
    choices = {
        False: [{}],
        True: [{"references": TEXT}],
        "several": [{"references": datasets.Sequence(TEXT)}],
        "either": [{"references": datasets.Sequence(TEXT)}, {"references": TEXT}],
    }
    options = [datasets.Features(features | choice) for choice in choices[references]]

    class Made(evaluate.Metric):
        calls = 0

        def _info(self):
            return evaluate.MetricInfo(
                description="",
                citation="",
                inputs_description="",
                features=options if len(options) > 1 else options[0],
            )

        def _compute(self, predictions, references=None, **arguments):
            Made.calls += 1
            return result(predictions, references, **arguments)

    return Made(keep_in_memory=in_memory)


def equal(predictions, references):
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]


def mean_equal(predictions, references):
    return {"equal": sum(equal(predictions, references)) / len(predictions)}


def each_equal(predictions, references):
    return {"equal": equal(predictions, references), "version": "1.0", "n": len(predictions)}


def episode(reply, *references, prompt="?", **meta):
    return Episode(Sample("s", prompt, references, meta), [Turn("assistant", reply)])


PAIRS = [episode(" Paris\n", "Paris"), episode("Rome", "Paris"), episode("Oslo", "Oslo", "Paris")]


def values(reward, episodes=PAIRS):
    return [score.value for score in reward.score(episodes)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_corpus_metric_is_computed_for_each_episode(in_memory):
    made = metric(mean_equal, in_memory=in_memory)
    reward = Evaluate(made)
    assert values(reward) == [1.0, 0.0, 1.0]
    assert made.calls == 3
    assert (reward.name, reward.when) == ("made", "episode")


def test_a_metric_with_a_number_for_each_prediction_is_computed_once_a_batch():
    made = metric(each_equal)
    reward = Evaluate(made, per_episode=False)
    assert values(reward) == [1.0, 0.0, 1.0]
    assert made.calls == 1
    assert values(reward, []) == []
    assert made.calls == 1
    assert values(Evaluate(made, key="equal")) == [1.0, 0.0, 1.0]


def test_one_value_for_a_batch_is_no_score():
    reward = Evaluate(metric(mean_equal), per_episode=False)
    with pytest.raises(
        RewardError, match=r"made returns nothing of 3 number\(s\) for 3 prediction\(s\): {'equal': 0.6"
    ):
        reward.score(PAIRS)


def test_the_key_chooses_a_value():
    made = metric(lambda p, r: {"precision": 0.25, "recall": np.float32(0.5), "parts": [0.1, 0.2], "note": "x"})
    assert values(Evaluate(made, "recall"), PAIRS[:1]) == [0.5]
    assert Evaluate(made, "recall").name == "made_recall"
    for key, message in [
        (None, "made returns several values; choose one with key=, of 'precision', 'recall', 'parts', 'note'"),
        ("f1", "made returns no 'f1'; choose a key of 'precision', 'recall', 'parts', 'note'"),
        ("parts", r"nothing of 1 number\(s\) for 1 prediction\(s\): {'parts': \[0.1, 0.2\]}"),
        ("note", r"nothing of 1 number\(s\) .*'note': 'x'"),
    ]:
        with pytest.raises(RewardError, match=message):
            Evaluate(made, key).score(PAIRS[:1])


@pytest.mark.parametrize("result", [0.75, np.float64(0.75), np.array([0.75]), {"a": [0.75], "b": "0.75", "c": None}])
def test_the_only_number_is_found(result):
    assert values(Evaluate(metric(lambda p, r: result)), PAIRS[:1]) == [0.75]


def test_references_as_the_metric_takes_them():
    seen = []

    def note(predictions, references):
        seen.append(references)
        return 0.0

    for kind in (True, "several", "either", False):
        values(Evaluate(metric(note, references=kind)), PAIRS[2:])
    assert seen == [["Oslo"], [["Oslo", "Paris"]], [["Oslo", "Paris"]], None]


@pytest.mark.parametrize("per_episode", [True, False])
def test_without_references_there_is_no_score(per_episode):
    reward = Evaluate(metric(each_equal), "equal", per_episode=per_episode)
    first, second, third = reward.score([episode("a", "a"), episode("a"), episode("a", "b")])
    assert (first.value, third.value) == (1.0, 0.0)
    assert (second.value, second.status) == (None, "made_equal: needs a reference; sample 's' has none")
    lone = Evaluate(metric(lambda p, r: len(p[0]), references=False))
    assert values(lone, [episode("abc")]) == [3.0]


def test_arguments_are_handed_on():
    reward = Evaluate(metric(lambda p, r, factor: factor), arguments={"factor": 4})
    assert values(reward, PAIRS[:1]) == [4.0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_failure_is_one_episodes_alone(in_memory):
    def careful(predictions, references):
        if "Rome" in predictions:
            raise ValueError("no Rome")
        return mean_equal(predictions, references)

    scores = Evaluate(metric(careful, in_memory=in_memory)).score_at("episode", PAIRS)
    assert [score.value for score in scores] == [1.0, None, 1.0]
    assert scores[1].status == "made: ValueError: no Rome"
    unfit = Evaluate(metric(lambda p, r: float("nan")))
    assert "nan, not a finite number" in unfit.score_at("episode", PAIRS[:1])[0].status


def test_global_generators_are_left_alone():
    made = metric(lambda p, r: float(np.random.rand()))
    before = np.random.get_state()[1:3]
    values(Evaluate(made))
    after = np.random.get_state()[1:3]
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1]


def test_a_script_of_ones_own(tmp_path, capfd):
    (tmp_path / "overlap").mkdir()
    script = tmp_path / "overlap" / "overlap.py"
    script.write_text(SCRIPT)
    for path in (script, str(script.parent)):
        reward = Evaluate(path)
        assert values(reward, [episode("a b c", "b c d"), episode("a", "b")]) == [2.0, 0.0]
        assert reward.name == "overlap"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["rouge", "someone/metric", "missing.py", "missing/overlap.py"])
def test_a_name_on_the_hub_is_loaded_only_when_trusted(monkeypatch, name):
    asked = []
    monkeypatch.setattr(evaluate, "load", lambda path, **_: asked.append(path) or metric(mean_equal))
    with pytest.raises(RewardError, match=rf"no metric at '{name}'.*trust_remote_code=True only, since that runs"):
        Evaluate(name)
    assert asked == []
    assert values(Evaluate(name, trust_remote_code=True)) == [1.0, 0.0, 1.0]
    assert asked == [name]


def test_what_is_no_metric(tmp_path):
    with pytest.raises(RewardError, match=r"is an evaluate\.EvaluationModule or a path, not 3"):
        Evaluate(3)
    with pytest.raises(RewardError, match="made takes predictions, references, sources; a reward gives"):
        Evaluate(metric(mean_equal, sources=TEXT))
    with pytest.raises(RewardError, match="neither a script nor a folder with a script of its name"):
        Evaluate(Path(tmp_path))


def test_a_reward_as_a_metric(capfd):
    made = as_metric(lexical.ExactMatch())
    assert isinstance(made, evaluate.Metric)
    result = made.compute(predictions=[" Paris.", "Rome", "Oslo", "x"], references=[["Paris"], ["Paris"], ["Oslo"], []])
    assert result == {"reward": pytest.approx(2 / 3), "reward/exact_match": pytest.approx(2 / 3), "unscored": 1}
    assert made.compute(predictions=["Paris"], references=["Paris"])["reward"] == 1.0
    assert made.compute(predictions=["Paris", "b"]) == {"unscored": 2}
    made.add_batch(predictions=["a", "b"], references=["a", "a"])
    made.add_batch(predictions=["c"], references=["a"])
    assert made.compute()["reward"] == pytest.approx(1 / 3)
    assert capfd.readouterr() == ("", "")


def test_combinations_and_functions_as_metrics():
    combined = as_metric(0.5 * lexical.ExactMatch() - 2 * lexical.DistinctN(1))
    assert combined.compute(predictions=["a", "b b"], references=["a", "a"]) == {
        "reward": pytest.approx(((0.5 - 2) + (0 - 1)) / 2),
        "reward/exact_match": 0.5,
        "reward/distinct_1": 0.75,
        "unscored": 0,
    }
    plain = as_metric(lambda prompt, response, meta: len(prompt) + 10 * len(response) + meta.get("more", 0))
    assert plain.compute(predictions=["a"])["reward"] == 10
    assert plain.compute(predictions=["a"], prompts=["abc"], metas=[{"more": 100}])["reward"] == 113


def test_what_a_reward_raises_counts_as_unscored():
    def fragile(response):
        return Score(1 / len(response), {"inverse": 1.0})

    assert as_metric(fragile).compute(predictions=["", "ab"]) == {"reward": 0.5, "reward/inverse": 1.0, "unscored": 1}
    each_turn = textgym.reward(lambda response: 2.0, name="two", when="turn")
    assert as_metric(each_turn).compute(predictions=["a"]) == {"reward": 2.0, "reward/two": 2.0, "unscored": 0}
    with pytest.raises(RewardError, match="not 3"):
        as_metric(3)
    with pytest.raises(ValueError, match="zip"):
        as_metric(fragile).compute(predictions=["a"], prompts=["a", "b"])


def test_there_and_back():
    reward = Evaluate(as_metric(lexical.TokenF1()), key="reward/token_f1")
    assert values(reward, [episode("the tall tower", "a tall man")]) == [0.5]
