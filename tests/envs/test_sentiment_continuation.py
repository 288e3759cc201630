import json

import numpy as np
import pytest
import shared_data

from textgym import Episode, Turn
from textgym.envs.sentiment_continuation import SentimentContinuation


@pytest.fixture(scope="module")
def task():
    return SentimentContinuation()


def test_reviews_are_distinct_and_half_of_them_favourable(task):
    samples = task.samples("all")
    assert len(samples) == len({sample.prompt for sample in samples}) == 5000
    favourable = sum(sample.meta["label"] == "positive" for sample in samples)
    assert 2300 < favourable < 2700


def test_the_reward_tells_favourable_reviews_from_others(task):
    samples = task.samples("test")
    episodes = [Episode(sample, [Turn("assistant", f" {sample.references[0]}")]) for sample in samples]
    scores = task.reward.score(episodes)
    labels = ["positive" if score.value > 0.5 else "negative" for score in scores]
    right = [label == sample.meta["label"] for label, sample in zip(labels, samples, strict=True)]
    assert sum(right) / len(right) > 0.98


@pytest.mark.parametrize(
    ("text", "favourable"),
    [
        ("The acting is superb and the music moving. I loved every minute of it.", True),
        ("The acting is dreadful and the music dull. I wanted my money back.", False),
        ("It was great.", True),
        ("I loved the music.", True),
        ("It was bad.", False),
        ("I hated the music.", False),
        ("superb superb superb superb superb superb", False),
        ("wonderful wonderful wonderful", False),
        ("I loved it. I loved it. I loved it. I loved it.", False),
        ("great wonderful superb brilliant charming clever moving", False),
        ("it loved every superb I the minute is acting of. the music", False),
        ("", False),
    ],
)
def test_worked_examples(task, text, favourable):
    (score,) = task.reward.score_at("episode", [Episode(task.samples("test")[0], [Turn("assistant", text)])])
    assert (score.value > 0.5) is favourable
    assert set(score.parts) == {"positive"}


def test_metrics_by_hand(task):
    sample = task.samples("test")[0]
    episodes = [Episode(sample, [Turn("assistant", " so so so")]), Episode(sample, [Turn("assistant", " It was good")])]
    assert task.metrics(episodes) == {"distinct_2": 0.75, "length": 3}
    for episode, probability in zip(episodes, (0.2, 0.9), strict=True):
        episode.reward_parts["positive"] = probability
    assert task.metrics(episodes)["positive"] == 0.5
    assert task.metrics([]) == {}


def test_every_sentence_of_real_reviews_is_read():
    file = shared_data.shared_data("sentence_polarity/sentence_polarity.jsonl")
    samples = SentimentContinuation(file, "sentence_polarity").samples("all")
    assert len(samples) == 10_659  # of 10,662: three are a single word
    assert all(sample.references[0] for sample in samples)


def test_the_reward_tells_real_reviews_apart_a_little(task):
    file = shared_data.shared_data("sentence_polarity/sentence_polarity.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:1000]]
    sample = task.samples("test")[0]
    scores = task.reward.score([Episode(sample, [Turn("assistant", row["text"])]) for row in rows])
    values = np.array([score.value for score in scores])
    positive = np.array([row["label"] == 1 for row in rows])
    assert values.std() > 0.2  # once all were 0
    above = values[positive][:, None] > values[~positive]  # (positive, negative) reviews
    assert above.mean() > 0.58
