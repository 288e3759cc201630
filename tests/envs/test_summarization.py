import pytest
from lengths import longest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.summarization import EXTRACT_SHARE, Summarization, summary_prompt
from textgym.rewards.lexical import Contains, Rouge


@pytest.fixture(scope="module")
def task():
    return Summarization()


def episode(response, sample):
    return Episode(sample, [Turn("assistant", response)])


def mean_reward(task, samples, reply_of):
    scores = task.reward.score([episode(reply_of(sample), sample) for sample in samples])
    return sum(score.value for score in scores) / len(scores)


def test_samples(task):
    sizes = {split: len(task.samples(split)) for split in ("warm_start", "train", "validation", "test")}
    assert sum(sizes.values()) == len({sample.prompt for sample in task.samples("all")}) == 10_000
    assert sizes["train"] > 3900
    assert min(sizes.values()) > 450
    for sample in task.samples("all"):
        assert 3 <= sum(sample.prompt.count(mark) for mark in ".!?") <= 5
        assert len(sample.references) == 2
        assert "{" not in sample.prompt + "".join(sample.references)


def test_key_facts_are_in_every_summary_and_in_the_passage():
    coverage = Contains(meta="key_facts")
    for sample in Summarization.builtin():
        assert 3 <= len(sample.meta["key_facts"]) <= 4
        texts = [*sample.references, sample.prompt]
        assert [score.value for score in coverage.score([episode(text, sample) for text in texts])] == [1.0] * 3, sample


def test_prompts_and_replies_are_short(task):
    samples = task.samples("all")
    assert longest([sample.prompt for sample in samples]) <= 80
    assert longest([f" {text}" for sample in samples for text in sample.references]) < 30
    assert longest([task.demonstration(sample)[0] for sample in samples]) < task.max_new_tokens


def test_most_demonstrations_copy_the_beginning(task):
    samples = task.samples("all")
    replies = [task.demonstration(sample)[0] for sample in samples]
    copied = [sample.prompt.startswith(f"Text:{reply}") for sample, reply in zip(samples, replies, strict=True)]
    assert abs(sum(copied) / 10_000 - EXTRACT_SHARE) < 0.02
    good = [
        reply[1:] in sample.references for sample, reply, copy in zip(samples, replies, copied, strict=True) if not copy
    ]
    assert all(good)
    assert mean_reward(task, samples[:500], lambda sample: sample.references[0]) == pytest.approx(1.0)
    assert 0.6 < mean_reward(task, samples[:500], lambda sample: task.demonstration(sample)[0]) < 0.8


SAMPLE = Sample(
    "a",
    summary_prompt("It rained. Anna opened a shop in Milton on Monday."),
    ("Anna opened a shop in Milton.", "Anna has a shop."),
    {"key_facts": ["Anna", "shop", "Milton", "Monday"]},
)
WITHOUT_FACTS = Sample("b", SAMPLE.prompt, SAMPLE.references)


def test_rewards_of_worked_episodes(task):
    replies = [" Anna opened a shop in Milton.", " Anna has a shop.", " It rained.", "", " x" * 30 + " Anna", " x" * 50]
    values = [score.value for score in task.reward.score([episode(reply, SAMPLE) for reply in replies])]
    long_rouge = 2 * (1 / 31) * (1 / 4) / (1 / 31 + 1 / 4)
    long = (2 - 31 / 25) * (0.5 * 1 / 4 + 0.5 * long_rouge)
    assert values == pytest.approx([0.5 + 0.5 * 3 / 4, 0.5 + 0.5 * 2 / 4, 0.0, 0.0, long, 0.0])
    parts = task.reward.score([episode(replies[0], SAMPLE)])[0].parts
    assert parts == pytest.approx({"rougeL": 1.0, "coverage": 0.75, "length_words": 1.0})


def test_without_key_facts_rouge_stands_alone(task):
    for reply in (" Anna opened a shop.", " It rained.", ""):
        (score,) = task.reward.score([episode(reply, WITHOUT_FACTS)])
        assert score.value == pytest.approx(Rouge("rougeL").similarity(reply, WITHOUT_FACTS.references))
        assert score.parts.keys() == {"rougeL", "rougeL_2", "length_words"}
    both = task.reward.score([episode(" Anna has a shop.", sample) for sample in (SAMPLE, WITHOUT_FACTS)])
    assert [score.value for score in both] == pytest.approx([0.75, 1.0])


def test_metrics_of_worked_episodes(task):
    metrics = task.metrics([episode(" Anna has a shop.", SAMPLE), episode(" Anna opened it", WITHOUT_FACTS)])
    rouge = 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)
    other = 2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4)
    expected = {"rouge1": (1 + rouge) / 2, "rougeL": (1 + rouge) / 2, "coverage": 0.5, "length": 3.5}
    assert rouge > other
    assert metrics == pytest.approx(expected)
    assert "coverage" not in task.metrics([episode("", WITHOUT_FACTS)])
    assert task.metrics([]) == {}


@pytest.mark.parametrize(("name", "rows", "references"), [("train", 1239, 1239), ("dev", 365, 926)])
def test_every_row_of_scitldr(name, rows, references):
    task = Summarization(shared_data(f"scitldr/{name}.jsonl"), "scitldr")
    samples = task.samples("all")
    assert len(samples) == len({sample.meta["paper_id"] for sample in samples}) == rows
    assert sum(len(sample.references) for sample in samples) == references
    for sample in samples:
        assert sample.prompt.startswith("Text: ")
        assert sample.prompt.endswith("\nSummary:")
        assert task.demonstration(sample) == [f" {sample.references[0]}"]
    if name == "dev":
        (sample,) = (sample for sample in samples if sample.meta["paper_id"] == "rJlnfaNYvB")
        assert sample.prompt.startswith("Text: Mixed precision training (MPT) is becoming a practical technique")
        assert sample.references[0].startswith("We devise adaptive loss scaling to improve mixed precision training")
        assert len(sample.references) == 3


@pytest.mark.parametrize(
    ("layout", "names", "row"),
    [
        (
            "scitldr",
            ("allenai/scitldr", "Abstract"),
            {
                "source": ["It rained.", "It poured."],
                "target": ["Rain.", "Wet."],
                "paper_id": "1",
                "rouge_scores": [1.0],
            },
        ),
        (
            "cnn_dailymail",
            ("abisee/cnn_dailymail", "3.0.0"),
            {"article": "It rained. It poured.", "highlights": "Rain .\nWet .", "id": "1"},
        ),
        (
            "xsum",
            ("EdinburghNLP/xsum", None),
            {"document": "It rained. It poured.", "summary": "Rain.", "id": "1"},
        ),
    ],
)
def test_data_sets_of_the_hub(monkeypatch, layout, names, row):
    def load_dataset(*given):
        assert given == names
        return {"train": [row]}

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    (sample,) = Summarization(layout).samples("train")
    assert sample.prompt == "Text: It rained. It poured.\nSummary:"
    expected = {"scitldr": ("Rain.", "Wet."), "cnn_dailymail": ("Rain . Wet .",), "xsum": ("Rain.",)}
    assert sample.references == expected[layout]


def test_a_row_that_is_none_is_named():
    with pytest.raises(textgym.errors.DataError, match="row 0: this is no row of allenai/scitldr: no column 'source'"):
        Summarization([{"text": "It rained."}], "scitldr")


@pytest.mark.parametrize("level", ["token", "turn"])
def test_check_env(level):
    textgym.register("tests/Summarization-v0", task=Summarization)
    textgym.check_env(textgym.make("tests/Summarization-v0", **({"level": level} if level == "turn" else {})))
