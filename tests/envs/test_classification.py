import re
from collections import Counter
from statistics import fmean

import numpy as np
import pytest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.classification import Classification, builtin_reviews, class_scores
from textgym.errors import DataError
from textgym.rendering import load_tokenizer
from textgym.rewards.abstain import exact_match

SPLITS = ("warm_start", "train", "validation", "test")
HEDGES = {"hard to say", "not sure", "could be either", "somewhere in between"}


@pytest.fixture(scope="module")
def task():
    return Classification()


def review(sample):
    return re.fullmatch(r"Review: (.*)\nSentiment \(positive, negative or mixed\):", sample.prompt)[1]


def test_reviews_are_english_and_other_ones_in_every_split(task):
    texts = {split: {review(sample) for sample in task.samples(split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 5000
    assert len(texts["train"]) > 1900
    assert min(map(len, texts.values())) > 450
    for text in set().union(*texts.values()):
        assert re.fullmatch(r"[A-Z][-a-zI',; ]*(\. [A-Z][-a-zI', ]*)?\.", text), text
        assert "  " not in text
        assert len(text.split()) <= 25


def test_classes_and_kinds(task):
    samples = task.samples("all")
    assert task.classes == {"positive", "negative", "mixed"}
    shares = {name: count / 5000 for name, count in Counter(s.references[0] for s in samples).items()}
    assert shares["mixed"] > 0.12
    assert abs(shares["positive"] - shares["negative"]) < 0.04
    assert {s.references for s in samples if s.meta["kind"] == "contradictory"} == {("mixed",)}
    assert {s.references for s in samples if s.meta["kind"] != "contradictory"} == {("positive",), ("negative",)}


@pytest.mark.parametrize(
    ("pattern", "meaning"),
    [
        (r"The [a-z ]+ was (?:really |truly |quite )?(?:superb|witty|clean)", "positive"),
        (r"The [a-z ]+ was (?:not superb at all|far from great|anything but perfect)", "negative"),
        (r"The [a-z ]+ was (?:not awful at all|far from bad|anything but poor)", "positive"),
        (r".*, but I loved it", "positive"),
        (r"(?:Although|Even though) .*, I hated it", "negative"),
        (r"I recommend .*, although .*", "positive"),
        (r"The [a-z ]+ (?:is|was) [a-z]+, but the [a-z ]+ (?:is|was) [a-z]+", "mixed"),
    ],
)
def test_what_a_review_says(task, pattern, meaning):
    found = [sample for sample in task.samples("all") if re.fullmatch(pattern + r"\.", review(sample))]
    assert found
    assert {sample.references for sample in found} == {(meaning,)}


def test_reviews_are_always_the_same():
    state = np.random.get_state()[1].copy()
    assert builtin_reviews.__wrapped__() == builtin_reviews()
    assert (np.random.get_state()[1] == state).all()


def test_annotators_are_right_about_what_is_easy_and_no_more_than_half_the_time_about_what_is_denied(task):
    said = [(sample, task.demonstration(sample)[0]) for sample in task.samples("all")]
    assert all(reply.startswith(" ") for _, reply in said)
    easy = [pair for pair in said if pair[0].meta["kind"] in ("plain", "agreeing")]
    denied = [pair for pair in said if pair[0].meta["kind"] == "denying"]
    assert 0.94 < share_right(easy) < 0.98
    assert 0.40 < share_right(denied) < 0.50
    assert 0.10 < fmean(reply.strip() in HEDGES for _, reply in denied) < 0.20
    assert 0.70 < share_right(said) < 0.80


def share_right(said):
    return fmean(exact_match(reply, sample.references) for sample, reply in said)


def test_prompts_and_replies_are_short(task):
    tokenizer = load_tokenizer(None)
    assert max(len(ids) for ids in tokenizer([s.prompt for s in task.samples("test")])["input_ids"]) <= 80
    replies = {task.demonstration(sample)[0] for sample in task.samples("all")}
    assert max(len(ids) for ids in tokenizer(sorted(replies))["input_ids"]) < task.max_new_tokens


# ------------------------------------------------------------------------------------------------- reward and metrics


def episode(response, references=("positive",)):
    return Episode(Sample("s", "Review: ...", references), [Turn("assistant", response)])


@pytest.mark.parametrize(
    ("response", "value"),
    [(" positive", 1), ("Positive.", 1), (" negative", 0), ("", 0), (" positive, I think", 0), (" not positive", 0)],
)
def test_the_reward_is_exact_match(task, response, value):
    assert [score.value for score in task.reward.score([episode(response)])] == [value]


def test_without_a_reference_there_is_no_score(task):
    (score,) = task.reward.score([episode("positive", ())])
    assert score.value is None
    assert "needs a reference" in score.status


def test_metrics_of_worked_episodes(task):
    said = [
        ("positive", " Positive."),
        ("positive", " negative"),
        ("positive", " hard to say"),
        ("negative", " negative"),
        ("negative", " negative"),
        ("mixed", " positive"),
    ]
    metrics = task.metrics([episode(response, (name,)) for name, response in said])
    assert metrics == pytest.approx(
        {
            "accuracy": 3 / 6,
            "macro_precision": (1 / 2 + 2 / 3 + 0) / 3,
            "macro_recall": (1 / 3 + 1 + 0) / 3,
            "macro_f1": (2 / 5 + 4 / 5 + 0) / 3,
            "no_class_rate": 1 / 6,
        }
    )


def test_metrics_of_one_episode_are_finite(task):
    assert task.metrics([]) == task.metrics([episode("positive", ())]) == {}
    assert task.metrics([episode("dunno")]) == {
        "accuracy": 0,
        "macro_precision": 0,
        "macro_recall": 0,
        "macro_f1": 0,
        "no_class_rate": 1,
    }
    assert set(task.metrics([episode("positive")]).values()) == {0, 1}


def test_class_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        true = rng.choice(["a", "b", "c"], 12, p=[0.6, 0.3, 0.1]).tolist()
        predicted = rng.choice(["a", "b", "d"], 12).tolist()
        expected = metrics.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)[:3]
        assert list(class_scores(true, predicted).values()) == pytest.approx(expected)


def test_checkers_pass():
    textgym.register("tests/Classification-v0", task=Classification)
    textgym.check_env(textgym.make("tests/Classification-v0"))
    textgym.check_env(textgym.make("tests/Classification-v0", level="turn"))


# ------------------------------------------------------------------------------------------------------- public data


def test_every_row_of_sentence_polarity():
    task = Classification(shared_data("sentence_polarity/sentence_polarity.jsonl"), "sentence_polarity")
    samples = task.samples("all")
    assert len(samples) == 10_662
    assert Counter(sample.references for sample in samples) == {("positive",): 5331, ("negative",): 5331}
    assert task.classes == {"positive", "negative"}
    assert [sample for sample in samples if not sample.prompt.endswith("\nSentiment (positive or negative):")] == []
    thesis = next(sample for sample in samples if "elegant technology for the masses" in sample.prompt)
    assert thesis.prompt.startswith("Review: the movie's thesis -- elegant")
    assert task.demonstration(thesis) == [" positive"]


def test_an_environment_of_real_reviews_passes_the_checker():
    path = shared_data("sentence_polarity/sentence_polarity.jsonl")
    textgym.register("tests/Classification-v0", task=Classification)
    textgym.check_env(textgym.make("tests/Classification-v0", data=str(path), columns="sentence_polarity"))


@pytest.mark.parametrize(
    ("layout", "row", "prompt", "reference"),
    [
        (
            "sentence_polarity",
            {"text": "a fine film .", "label": 1},
            "Review: a fine film .\nSentiment (positive or negative):",
            "positive",
        ),
        (
            "imdb",
            {"text": "Dull.<br /><br />Do not {watch}\nit.", "label": "0"},
            "Review: Dull. Do not {watch} it.\nSentiment (positive or negative):",
            "negative",
        ),
        (
            "sst2",
            {"idx": 7, "sentence": "hide new secretions ", "label": 0},
            "Review: hide new secretions\nSentiment (positive or negative):",
            "negative",
        ),
        (
            "ag_news",
            {"text": "Oil prices soar", "label": 2},
            "News: Oil prices soar\nTopic (world, sports, business, science and technology):",
            "business",
        ),
    ],
)
def test_layouts(layout, row, prompt, reference):
    task = Classification([row], layout)
    (sample,) = task.samples("all")
    assert (sample.prompt, sample.references) == (prompt, (reference,))
    assert task.demonstration(sample) == [f" {reference}"]


def test_unlabelled_rows_have_no_reference_and_no_demonstration():
    task = Classification([{"sentence": "uneasy", "label": -1}], "sst2")
    (sample,) = task.samples("all")
    assert sample.references == ()
    assert task.demonstration(sample) is None
    assert task.classes == frozenset()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "fine", "label": 2}, "row 0: .*rotten_tomatoes: its label is 2, and there are 0 to 1"),
        ({"text": "fine"}, "row 0: .*rotten_tomatoes: no column 'label'"),
        ({"sentence": "fine", "label": 1}, "no column 'text'"),
        ({"text": "fine", "label": "good"}, "invalid literal"),
    ],
)
def test_rows_of_another_layout_are_named(row, message):
    with pytest.raises(DataError, match=message):
        Classification([row], "sentence_polarity")


def test_data_of_ones_own():
    rows = [{"body": f"Mail {i}", "folder": ("Work", "private")[i % 2]} for i in range(100)]
    task = Classification(rows, {"prompt": "Mail: {body}\nFolder (work or private):", "references": "folder"})
    assert task.classes == {"work", "private"}
    sample = task.samples("test")[0]
    assert re.fullmatch(r"Mail: Mail \d+\nFolder \(work or private\):", sample.prompt)
    done = Episode(sample, [Turn("assistant", " " + sample.references[0].upper())])
    assert task.metrics([done])["accuracy"] == 1
