import re
from fractions import Fraction
from statistics import fmean

import pytest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.word_problems import Math, MathAnswer, answer_of, builtin_problems, is_well_formed, numbers_in
from textgym.errors import DataError
from textgym.rendering import load_tokenizer

SPLITS = ("warm_start", "train", "validation", "test")
PROMPT = re.compile(r"Question: (.*)\nEnd with #### and the number\.\nAnswer:")


@pytest.fixture(scope="module")
def task():
    return Math()


# ------------------------------------------------------------------------------------------------ numbers and answers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", []),
        ("none at all", []),
        ("3 + 4 = 7.", [3, 4, 7]),
        ("$1,234,567.50 in total", ["1234567.5"]),
        ("-$5, −6 and €-7", [-5, -6, -7]),
        ("10-3, (2)-1 and 4% -2", [10, 3, 2, 1, 4, -2]),
        ("0.1 or .25 or 007", ["0.1", "0.25", 7]),
        ("50% of 3/4 of 2 1/2 pies", [50, "3/4", "5/2"]),
        ("1,23 and 12,3456", [1, 23, 12, 3456]),
        ("8/0 = ? but 8/2", [4]),
        ("9" * 5000 + " and 1 and 1/" + "2" * 200, [1]),
        ("٣ and ½", []),
    ],
)
def test_numbers_in(text, numbers):
    assert numbers_in(text) == [Fraction(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 3 + 4 = 7, 7 - 2 = 5 #### 5", 5),
        ("#### $1,000.00", 1000),
        ("####-3", -3),
        ("#### 5 out of 7", 5),
        ("#### 1 #### 2", 2),
        ("so he has 12 apples.", 12),
        ("12 ####", None),
        ("", None),
        ("#### __import__('os').getpid()", None),
    ],
)
def test_answer_of(text, answer):
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    "reply", [" 3 + 4 = 7 #### 7", "of bag #1: 7 #### 7", "####7", "a\nb\n#### -1,200.5.\n", "#### 50%", "#### $3/4"]
)
def test_well_formed(reply):
    assert is_well_formed(reply)


@pytest.mark.parametrize(
    "reply", ["", "7", "#### 7 apples", "#### 1 #### 2", "## 7", "#### seven", "#### 7 8", "#### 7\n\n8"]
)
def test_malformed(reply):
    assert not is_well_formed(reply)


# ------------------------------------------------------------------------------------------------- reward and metrics


def episode(response, references=("3 + 4 = 7 #### 7",), **meta):
    return Episode(Sample("s", "Question: ...", references, meta), [Turn("assistant", response)])


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (" 3 + 4 = 7 #### 7", 1.1),
        (" #### 7.0", 1.1),
        (" The answer is 7.", 1.0),
        (" #### 7 apples", 1.0),
        (" #### 8", 0.1),
        (" 7 #### 8", 0.1),
        (" #### 7.0000000000000000000001", 0.1),
        (" 3 + 4 = 8", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_of_worked_replies(task, response, value):
    (score,) = task.reward.score([episode(response)])
    assert score.value == pytest.approx(value)
    assert score.parts == {"correct": float(value >= 1), "well_formed": float(value in (0.1, 1.1))}


def test_weights_and_several_references():
    reward = MathAnswer(correct=2, well_formed=0)
    scores = reward.score([episode("#### 0.5", ("1/2",)), episode("#### 9", ("8", "9")), episode("#### 7", ("8", "9"))])
    assert [score.value for score in scores] == [2, 2, 0]


def test_without_a_number_in_the_references_there_is_no_score(task):
    for references in ((), ("seven",), ("7 ####",)):
        (score,) = task.reward.score([episode("#### 7", references)])
        assert score.value is None
        assert score.status == "math_answer: no reference of sample 's' holds a number"


def test_metrics_of_worked_episodes(task):
    metrics = task.metrics(
        [
            episode(" 3 + 4 = 7 #### 7", steps=1),
            episode(" #### 7", steps=2),
            episode(" 7", steps=2),
            episode(" 1 + 1 = 2 #### 2", steps=2),
            episode(" #### 8"),
        ]
    )
    assert metrics == pytest.approx(
        {"accuracy": 3 / 5, "well_formed_rate": 4 / 5, "worked_rate": 2 / 5, "accuracy/1": 1, "accuracy/2": 2 / 3}
    )
    assert task.metrics([]) == {}
    assert task.metrics([episode("")]) == {"accuracy": 0, "well_formed_rate": 0, "worked_rate": 0}
    assert task.metrics([episode("7 #### 7", ())]) == {"well_formed_rate": 1, "worked_rate": 1}


# --------------------------------------------------------------------------------------------------- built-in problems


def test_problems_are_english_and_other_ones_in_every_split(task):
    questions = {split: {PROMPT.fullmatch(s.prompt)[1] for s in task.samples(split)} for split in SPLITS}
    assert sum(map(len, questions.values())) == len(set().union(*questions.values())) == 10_000
    assert len(questions["train"]) > 3900
    assert min(map(len, questions.values())) > 450
    for question in set().union(*questions.values()):
        assert re.fullmatch(r"[A-Z0-9][A-Za-z0-9,. ]+\?", question), question
        names = re.findall(r"[A-Z][a-z]+", re.sub(r"(^|\. )(How|There|Each|Of|On|Then|It|They|A)\b", "", question))
        assert len(set(names) - {"Monday", "Tuesday"}) <= 2, question


def test_the_working_leads_from_the_questions_numbers_to_the_answer(task):
    for sample in task.samples("all"):
        (reference,) = sample.references
        assert re.fullmatch(r"\d+ [-+*] \d+ = \d+(, \d+ [-+*] \d+ = \d+)? #### \d+", reference)
        *lines, last = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", reference)
        for a, operation, b, result in [*lines, last]:
            computed = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]
            assert 0 < computed == int(result) <= 20, sample
        assert len(lines) == sample.meta["steps"] - 1
        assert answer_of(reference) == int(last[-1])
        known = {*re.findall(r"\d+", sample.prompt), *(line[-1] for line in lines)}
        assert {number for line in [*lines, last] for number in (line[0], line[2])} <= known
        assert {*re.findall(r"\d+", sample.prompt)} <= {number for line in [*lines, last] for number in line}


@pytest.mark.parametrize(
    ("question", "solution"),
    [
        ("has {a} apples and gets {b} more", "{a} + {b}"),
        ("had {a} coins and gave {b} of them", "{a} - {b}"),
        ("buys {a} bags of {b} pens", "{a} * {b}"),
        ("finds {a} shells, and Ben finds {b} more than", "{a} + {b} = {t}, {a} + {t} ="),
    ],
)
def test_what_is_computed(task, question, solution):
    pattern = question.format(a=r"(?P<a>\d+)", b=r"(?P<b>\d+)").replace("Ben", r"\w+")
    pattern = re.sub(r"apples|coins|pens|shells", r"[a-z]+", pattern)
    found = [(match, s) for s in task.samples("all") if (match := re.search(pattern, s.prompt))]
    assert len(found) > 20
    for match, sample in found:
        a, b = match["a"], match["b"]
        assert sample.references[0].startswith(solution.format(a=a, b=b, t=int(a) + int(b))), sample


def test_problems_are_always_the_same():
    assert builtin_problems.__wrapped__() == builtin_problems()


def test_two_pupils_in_five_show_their_working_and_all_are_right(task):
    samples = task.samples("all")
    replies = [task.demonstration(sample)[0] for sample in samples]
    done = [Episode(s, [Turn("assistant", reply)]) for s, reply in zip(samples, replies, strict=True)]
    metrics = task.metrics(done)
    assert metrics["accuracy"] == metrics["well_formed_rate"] == 1
    assert 0.38 < metrics["worked_rate"] < 0.42
    assert 0.45 < fmean(sample.meta["steps"] == 2 for sample in samples) < 0.65
    assert all(reply.startswith(" ") for reply in replies)


def test_prompts_and_replies_are_short(task):
    tokenizer, samples = load_tokenizer(None), task.samples("test")
    assert max(map(len, tokenizer([sample.prompt for sample in samples])["input_ids"])) <= 80
    worked = tokenizer([f" {sample.references[0]}" for sample in samples])["input_ids"]
    assert max(map(len, worked)) < task.max_new_tokens


def test_checkers_pass():
    textgym.register("tests/Math-v0", task=Math)
    textgym.check_env(textgym.make("tests/Math-v0"))
    textgym.check_env(textgym.make("tests/Math-v0", level="turn"))


# ------------------------------------------------------------------------------------------------------- public data


@pytest.mark.parametrize(("file", "count"), [("test.jsonl", 1319), ("train_head.jsonl", 3628)])
def test_every_row_of_gsm8k(file, count):
    task = Math(shared_data(f"gsm8k/{file}"), "gsm8k")
    samples = task.samples("all")
    assert len(samples) == count
    for sample in samples:
        assert PROMPT.fullmatch(sample.prompt.replace("\n", " ", sample.prompt.count("\n") - 2)), sample
        (reference,) = sample.references
        assert "<<" not in reference
        assert answer_of(reference) == Fraction(reference.rpartition("####")[2].replace(",", ""))
        (reply,) = task.demonstration(sample)
        done = Episode(sample, [Turn("assistant", reply)])
        assert task.reward.score([done])[0].value == pytest.approx(1.1)


def test_an_environment_of_gsm8k_passes_the_checker():
    textgym.register("tests/Math-v0", task=Math)
    env = textgym.make("tests/Math-v0", data=str(shared_data("gsm8k/test.jsonl")), columns="gsm8k")
    assert env.unwrapped.setting.max_new_tokens == 400
    textgym.check_env(env)


def test_the_gsm8k_layout_strips_the_calculator():
    row = {"question": "How much?", "answer": "16 - 3 = $<<16-3=13>>13 a day.\nTwice: 2 * 13 = <<2*13=26>>26\n#### 26"}
    (sample,) = Math([row], "gsm8k").samples("all")
    assert sample.prompt == "Question: How much?\nEnd with #### and the number.\nAnswer:"
    assert sample.references == ("16 - 3 = $13 a day.\nTwice: 2 * 13 = 26\n#### 26",)
    with pytest.raises(DataError, match="row 0: this is no row of openai/gsm8k: no column 'answer'"):
        Math([{"question": "How much?"}], "gsm8k")


def test_data_of_ones_own():
    rows = [{"problem": f"What is {i} plus {i}?", "solution": 2 * i} for i in range(100)]
    task = Math(rows, {"prompt": "Question: {problem}\nAnswer:", "references": "solution"})
    sample = task.samples("test")[0]
    assert task.demonstration(sample) == [f" {sample.references[0]}"]
    done = Episode(sample, [Turn("assistant", f"It is {sample.references[0]}.")])
    assert task.reward.score([done])[0].value == 1
    assert (Math().max_new_tokens, task.max_new_tokens) == (40, 400)
