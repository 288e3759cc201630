import math

import pytest
import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.creative_writing import CreativeWriting, story_prompt


@pytest.fixture(scope="module")
def task():
    return CreativeWriting()


def told(sample, text, stop_reason="stop_string"):
    return Episode(sample, [Turn("assistant", text)], stop_reason)


def test_stories_contain_their_words_and_splits_are_disjoint(task):
    samples = task.samples("all")
    assert len(samples) == len({sample.prompt for sample in samples}) == 5000
    for sample in samples:
        assert len(sample.meta["words"]) == 3
        assert sample.prompt == story_prompt(sample.meta["words"])
    metrics = task.metrics([told(sample, sample.references[0]) for sample in samples])
    assert metrics["all_words"] == 1
    assert metrics["distinct_2"] > 0.98


def test_demonstrations_are_often_outlines_which_earn_less(task):
    samples = task.samples("test")
    demonstrations = [sample.meta["demonstration"] for sample in samples]
    assert all(task.demonstration(s) == [f" {said}"] for s, said in zip(samples, demonstrations, strict=True))
    shortened = [said != sample.references[0] for sample, said in zip(samples, demonstrations, strict=True)]
    assert 0.5 < sum(shortened) / len(samples) < 0.7
    scores = task.reward.score([told(s, f" {said}") for s, said in zip(samples, demonstrations, strict=True)])
    values = {short: [s.value for s, is_short in zip(scores, shortened, strict=True) if is_short == short]
              for short in (True, False)}  # fmt: skip
    assert sum(values[True]) / len(values[True]) < 0.5 * sum(values[False]) / len(values[False])


def test_the_story_model_does_not_judge_data_of_ones_own():
    task = CreativeWriting([{"prompt": "Sing!", "references": "la", "words": ["night"], "split": "train"}])
    (sample,) = task.samples("train")
    (score,) = task.reward.score([told(sample, " The night is dark.")])
    assert score.parts == {"ended": 1, "coverage": 1, "distinct_2": 1}
    assert score.value == 1


def test_the_reward_is_the_product_of_its_parts(task):
    sample = next(s for s in task.samples("test") if s.references[0].count(" ") > 10)
    whole, failing, unending = task.reward.score(
        [told(sample, sample.references[0]), told(sample, "A fox."), told(sample, sample.references[0], "length")]
    )
    assert whole.parts["coverage"] == 1
    assert whole.value == pytest.approx(math.prod(whole.parts.values()))
    assert whole.value > 0.1
    assert failing.value < whole.value / 2
    assert (unending.value, unending.parts["ended"]) == (0, 0)


def test_disorder_and_repetition_cost(task):
    sample = task.samples("test")[0]
    story = sample.references[0]
    disorder = " ".join(sorted(story.split()))
    again = f"{story} {story} {story}"
    values = [score.value for score in task.reward.score([told(sample, text) for text in (story, disorder, again)])]
    assert values[0] > 2 * max(values[1:])


def test_metrics_by_hand(task):
    sample = Sample("x", story_prompt(["fox", "key"]), (), {"words": ["fox", "key"]})
    assert task.metrics([told(sample, " A fox ran a fox ran", "length"), told(sample, " A key, a fox.")]) == {
        "coverage": 0.75,
        "all_words": 0.5,
        "distinct_2": pytest.approx((3 / 5 + 1) / 2),
        "ended": 0.5,
        "length": 5,
    }
    assert task.metrics([told(Sample("x", "Tell me a story."), " A fox ran.")]).keys() == {
        "distinct_2",
        "ended",
        "length",
    }
    assert task.metrics([]) == {}


def test_a_sample_without_words_is_not_scored(task):
    (score,) = task.reward.score([told(Sample("x", "Tell me a story."), " A fox.")])
    assert score.value is None
    assert "words" in score.status


def test_the_story_model_is_not_loaded_where_another_reward_is_given():
    env = textgym.make("textgym/CreativeWriting-v0", reward=lambda: 0.0)
    assert "reward" not in vars(env.unwrapped.task)


@pytest.mark.parametrize(("file", "n"), [("seed_tasks", 175), ("user_oriented_instructions", 252)])
def test_every_instruction_is_read(file, n):
    task = CreativeWriting(shared_data.shared_data(f"self_instruct/{file}.jsonl"), "self_instruct")
    samples = task.samples("all")
    assert len(samples) == n
    assert all(1 <= len(sample.meta["words"]) <= 3 and sample.references for sample in samples)
