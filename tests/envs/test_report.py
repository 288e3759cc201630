import pytest

from textgym import Episode, Sample, Turn
from textgym.envs.report import answer_metrics, mean_scores
from textgym.rewards import Abstain
from textgym.rewards.lexical import ExactMatch, Length


def episode(response, *references):
    return Episode(Sample("a", "Q", references), [Turn("assistant", response)])


def test_means_leave_out_what_cannot_be_scored():
    rewards = {"exact": ExactMatch(), "long": Length(2, 4)}
    episodes = [episode("Paris", "Paris"), episode("Rome", "Paris"), episode("city of light")]
    assert mean_scores(episodes, rewards) == pytest.approx({"exact": 0.5, "long": (0.5 + 0.5 + 1) / 3})
    assert mean_scores(episodes[2:], rewards) == {"long": 1.0}
    assert mean_scores([], rewards) == {}


def test_answers_are_counted_over_all_and_over_groups():
    episodes = [
        episode("Paris", "Paris"),
        episode("city of Paris", "Paris"),
        episode("unknown", "Paris"),
        episode("unknown", "I don't know"),
        episode("I know", "I don't know"),
    ]
    judge = Abstain()
    metrics = answer_metrics(episodes, judge, {"answerable": judge.has_answer, "nobody": lambda sample: False})
    assert metrics == pytest.approx(
        {
            "accuracy": 2 / 5,
            "abstention_rate": 2 / 5,
            "hallucination_rate": 2 / 5,
            "token_f1": (1 + 0.5 + 0 + 1 + 0) / 5,
            "precision_when_answering": 1 / 3,
            "accuracy/answerable": 1 / 3,
            "abstention_rate/answerable": 1 / 3,
            "hallucination_rate/answerable": 1 / 3,
            "token_f1/answerable": 0.5,
            "precision_when_answering/answerable": 1 / 2,
        }
    )
    assert "precision_when_answering" not in answer_metrics(episodes[2:3], judge, {})
    assert answer_metrics([], judge, {}) == {}
