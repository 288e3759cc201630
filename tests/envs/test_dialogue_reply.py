from collections import defaultdict
from statistics import fmean

import pytest
from shared_data import shared_data

import textgym
from textgym import Episode, Turn
from textgym.envs.dialogue_reply import CONTEXT, DialogueReply
from textgym.errors import DataError

SPLITS = ("train", "validation", "test")
BUILTIN_SPLITS = ("warm_start", *SPLITS)


@pytest.fixture(scope="module")
def task():
    return DialogueReply()


def said(sample, text):
    return Episode(sample, [Turn("assistant", text)])


def splits_of_prompts(task, splits):
    found = defaultdict(set)
    for split in splits:
        for sample in task.samples(split):
            found[str(sample.prompt)].add(split)
    return found


def test_builtin_contexts_are_divided_by_conversation(task):
    sizes = {split: len(task.samples(split)) for split in BUILTIN_SPLITS}
    assert sum(sizes.values()) == sum(map(len, DialogueReply.builtin().values())) > 4900
    assert sizes["train"] + sizes["warm_start"] > 3900
    assert min(sizes["validation"], sizes["test"]) > 450
    conversations = {
        split: {sample.id.rpartition("/")[0] for sample in task.samples(split)} for split in BUILTIN_SPLITS
    }
    assert sum(map(len, conversations.values())) == len(set().union(*conversations.values())) > 1000


def test_no_builtin_context_comes_twice(task):
    assert len(splits_of_prompts(task, BUILTIN_SPLITS)) == sum(len(task.samples(split)) for split in BUILTIN_SPLITS)


def test_builtin_contexts_end_with_the_user_and_are_short(task):
    renderer = textgym.TokenEnv(task).setting.renderer
    for sample in task.samples("train")[:500]:
        roles = [message["role"] for message in sample.messages]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2 - 1), "user"]
        assert len(renderer.prompt_ids(sample)) <= 190
        assert len(renderer.reply_ids(" " + sample.references[0])) <= 25


def test_a_builtin_conversation(task):
    by_length = {}
    for sample in task.samples("all"):
        if sample.id.startswith("train/Prague/Sunday/10/7/"):
            by_length[len(sample.messages)] = sample
    assert len(by_length) == 4
    assert by_length[2].messages[1]["content"] == "I'd like to book a train at 10 for 7."
    assert by_length[2].references == ("To where and what day?",)
    last = by_length[8]
    assert last.messages[-2]["content"] == "A train to Prague on Sunday at 10 for 7. Is that right?"
    assert last.references == ("Done. Goodbye.",)
    assert task.demonstration(last) == [" Done. Goodbye."]


def test_demonstrations_are_worse_than_references_which_are_best(task):
    samples = task.samples("train")[:500]
    demonstrated = [said(sample, task.demonstration(sample)[0]) for sample in samples]
    best = [said(sample, " " + sample.references[0]) for sample in samples]
    assert fmean(score.value for score in task.reward.score(best)) == pytest.approx(1.0)
    assert 0.5 < fmean(score.value for score in task.reward.score(demonstrated)) < 0.8
    assert 0.4 < fmean(a.response == b.response for a, b in zip(demonstrated, best, strict=True)) < 0.7


def test_metrics_of_worked_replies(task):
    rows = [{"prompt": "Hello", "references": "On Monday at 7", "id": str(i), "split": "train"} for i in range(2)]
    right, half = DialogueReply(rows).samples("train")
    metrics = task.metrics([said(right, " On Monday at 7"), said(half, " On Monday")])
    assert metrics["token_f1"] == pytest.approx((1 + 2 * 2 / (2 + 4)) / 2)
    assert 0.5 < metrics["chrf"] < 1
    assert metrics["length"] == 3.0
    assert task.metrics([]) == {}


def test_rows_of_ones_own_may_have_a_demonstration():
    rows = [{"prompt": "Hi", "references": "Hello", "split": "train", "demonstration": demo} for demo in ("Hey", None)]
    first, second = (task := DialogueReply(rows)).samples("train")
    assert [task.demonstration(first), task.demonstration(second)] == [[" Hey"], [" Hello"]]
    assert task.demonstration(DialogueReply([{"prompt": "Hi", "split": "train"}]).samples("train")[0]) is None


SGD_ROW = {
    "dialogue_id": "1_00000",
    "services": ["Restaurants_2"],
    "turns": [
        {"speaker": speaker, "text": text}
        for speaker, text in zip(["USER", "SYSTEM"] * 4, "abcdefgh", strict=True)
    ],
}  # fmt: skip


def test_each_reply_of_a_system_becomes_a_sample():
    samples = DialogueReply([SGD_ROW], "sgd").samples("all")
    assert [sample.id for sample in samples] == [f"1_00000/{number}" for number in range(4)]
    assert [sample.references for sample in samples] == [("b",), ("d",), ("f",), ("h",)]
    contents = ["".join(message["content"] for message in sample.messages) for sample in samples]
    assert contents == ["a", "abc", "abcde", "cdefg"]
    assert max(map(len, contents)) == CONTEXT
    for sample in samples:
        n = len(sample.messages)
        assert [message["role"] for message in sample.messages] == ["user", "assistant"] * (n // 2) + ["user"]
    assert samples[0].meta == {"services": ["Restaurants_2"]}


def test_other_forms_of_the_same_dialogue():
    expected = DialogueReply([SGD_ROW], "sgd").samples("all")
    turns = SGD_ROW["turns"]
    original = [{"speaker": turn["speaker"], "utterance": turn["text"], "frames": []} for turn in turns]
    on_hub = {"speaker": [0, 1] * 4, "utterance": [turn["text"] for turn in turns], "frames": [[]] * 8}
    for form in (original, on_hub):
        assert DialogueReply([{**SGD_ROW, "turns": form}], "sgd").samples("all") == expected


def test_in_a_chat_every_turn_after_the_first_is_a_reply():
    for layout, row in (
        ("chatterbot", {"topic": "ai", "turns": ["a", "b", " ", "c"]}),
        ("daily_dialog", {"dialog": ["a", "b", " ", "c"], "act": [1] * 4, "emotion": [0] * 4}),
    ):
        samples = DialogueReply([row], layout).samples("all")
        assert [sample.references for sample in samples] == [("b",), ("c",)]
        assert samples[1].messages == [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": " "},
        ]


@pytest.mark.parametrize(("row", "message"), [({"turns": ["a", "b"]}, "'topic'"), ({"topic": "ai"}, "'turns'")])
def test_a_missing_column_is_named(row, message):
    with pytest.raises(DataError, match=f"no row of gunthercox/chatterbot-corpus: no column {message}"):
        DialogueReply([row], "chatterbot")


@pytest.mark.parametrize(
    ("file", "layout", "n_samples"),
    [("sgd_dialogues/dialogues.jsonl", "sgd", 8423), ("chatterbot_corpus/english.jsonl", "chatterbot", 2377)],
)
def test_real_dialogues(file, layout, n_samples):
    task = DialogueReply(shared_data(file), layout)
    assert len(task.samples("all")) == n_samples
    assert sum(len(task.samples(split)) for split in SPLITS) == n_samples
    assert all(len(splits) == 1 for splits in splits_of_prompts(task, SPLITS).values())
    if layout == "sgd":  # 1,331 dialogues, 8,425 system turns, two of them blank
        dialogues = {split: {s.id.partition("/")[0] for s in task.samples(split)} for split in SPLITS}
        assert sum(map(len, dialogues.values())) == len(set().union(*dialogues.values())) == 1331


def test_real_dialogues_make_an_environment():
    file = shared_data("sgd_dialogues/dialogues.jsonl")
    textgym.register("tests/DialogueReply-v0", task=DialogueReply)
    env = textgym.make("tests/DialogueReply-v0", data=file, columns="sgd", max_new_tokens=64)
    observation, _ = env.reset(seed=0)
    prompt = env.unwrapped.tokenizer.decode(observation["input_ids"][: observation["attention_mask"].sum()])
    assert prompt.startswith("user: ")
    assert prompt.endswith("\nassistant:")


def test_environments_pass_the_checks():
    textgym.register("tests/DialogueReply-v0", task=DialogueReply)
    textgym.check_env(textgym.make("tests/DialogueReply-v0"))
    textgym.check_env(textgym.make("tests/DialogueReply-v0", level="turn"))
