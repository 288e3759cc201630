import json
import sys
from types import MappingProxyType

import pytest

import textgym
from textgym import DataTask, Sample, load_samples
from textgym.data import BuiltinTask, Layout, split_of
from textgym.errors import DataError

QA = {"prompt": "question", "references": "answer"}
ROWS = [{"question": f"Question {i}?", "answer": f"{i}", "level": i % 3} for i in range(40)]


def everything(source, columns=None):
    return DataTask(source, columns).samples("all")


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_files(tmp_path, suffix):
    path = write_rows(tmp_path / f"data{suffix}", ROWS)
    from_file, from_list = load_samples(path, QA), load_samples(ROWS, QA)
    assert {split: [s.id for s in part] for split, part in from_file.items()} == {
        split: [s.id for s in part] for split, part in from_list.items()
    }
    first = next(sample for sample in everything(str(path), QA) if sample.references == ("3",))
    assert (first.prompt, first.references, str(first.meta["level"])) == ("Question 3?", ("3",), "0")


def test_iterables_of_every_kind():
    samples = [Sample(str(i), f"{i}") for i in range(40)]
    assert sorted(s.id for s in everything(iter(samples))) == sorted(s.id for s in samples)
    assert len(everything((row for row in ROWS), QA)) == 40
    datasets = pytest.importorskip("datasets")
    assert len(everything(datasets.Dataset.from_list(ROWS), QA)) == 40


def test_splits_of_the_source_are_kept():
    source = {"train": ROWS[:5], "valid": ROWS[5:7], "test": [Sample("a", "b")]}
    by_split = load_samples(source, QA)
    assert {split: len(part) for split, part in by_split.items()} == {"train": 5, "validation": 2, "test": 1}
    rows = [{"prompt": f"p{i}", "fold": ["dev", "train"][i % 2]} for i in range(6)]
    assert {k: len(v) for k, v in load_samples(rows, {"split": "fold"}).items()} == {"validation": 3, "train": 3}


def test_other_data_are_split_by_a_hash_of_the_id():
    samples = [Sample(str(i), "p") for i in range(2000)]
    by_split = load_samples(samples)
    assert {split: round(len(part) / 2000, 1) for split, part in by_split.items()} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }
    assert all(split_of(sample.id) == split for split, part in by_split.items() for sample in part)
    backwards = load_samples(samples[::-1][:500])
    assert all(sample in by_split[split] for split, part in backwards.items() for sample in part)


def test_copies_of_a_prompt_have_their_own_ids_and_one_split():
    rows = [{"prompt": f"p{i % 20}", "references": str(i)} for i in range(60)]
    by_split = load_samples(rows)
    samples = [sample for part in by_split.values() for sample in part]
    assert len({sample.id for sample in samples}) == 60
    where = {}
    for split, part in by_split.items():
        for sample in part:
            assert where.setdefault(sample.prompt, split) == split


def test_columns():
    rows = [{"Country": "Japan", "Capital": "Tokyo", "code": "JP", "n": 3}]
    (sample,) = everything(
        rows,
        {"prompt": "Capital of {Country} ({code})?", "references": "Capital", "id": "code", "kind": "cap/{Country}"},
    )
    assert sample == Sample(
        "JP", "Capital of Japan (JP)?", ("Tokyo",), {"Country": "Japan", "n": 3, "kind": "cap/Japan"}
    )
    assert "{Country.__class__}" not in rows[0]
    with pytest.raises(DataError, match=r"column 'Country.__class__'"):
        everything(rows, {"prompt": "{Country.__class__}"})


def test_empty_references_are_none_and_tsv_has_no_quotes(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text('question\tanswer\n"Who?" he asked\t\n"\tx"\n')
    first, second = sorted(everything(path, QA), key=lambda sample: len(sample.references))
    assert (first.prompt, first.references) == ('"Who?" he asked', ())
    assert (second.prompt, second.references) == ('"', ('x"',))
    with pytest.raises(DataError, match=r"^row 0, column 'answer' \(references\): it is missing"):
        everything([{"question": "a"}], QA)


def test_references_and_prompts_of_every_form():
    messages = [{"role": "user", "content": "Hi"}]
    rows = [
        {"id": "a", "prompt": "p", "references": ["x", "y"]},
        {"id": "b", "prompt": "p", "references": 7},
        {"id": "c", "prompt": "p", "references": None},
        {"id": "d", "prompt": "p"},
        {"id": "e", "prompt": messages, "references": []},
    ]
    by_id = {sample.id: sample for sample in everything(rows)}
    assert [by_id[i].references for i in "abcde"] == [("x", "y"), ("7",), (), (), ()]
    assert by_id["e"].messages == messages


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", "", "d.jsonl has no rows"),
        ("d.csv", "question,answer\n", "d.csv has no rows"),
        ("d.csv", "", "d.csv has no rows"),
        ("d.json", "[]", "d.json has no rows"),
        ("d.jsonl", '{"question": "a", "answer": "b"}\n{"question": }', r"d.jsonl, line 2, column 14: this is no JSON"),
        (
            "d.jsonl",
            '{"question": "a", "answer": "b"}\n\n{"answer": "b"}',
            r"line 3, column 'question' \(prompt\): it is missing",
        ),
        (
            "d.jsonl",
            '{"question": "a"}',
            r"line 1, column 'answer' \(references\): it is missing; the columns are \['question'\]",
        ),
        ("d.jsonl", '{"question": " ", "answer": "b"}', "line 1, column 'question': the prompt is empty"),
        ("d.jsonl", '{"question": "a", "answer": {"b": 1}}', "line 1, column 'answer': .* is no text"),
        (
            "d.jsonl",
            '{"question": [{"role": "boss", "content": "a"}], "answer": "b"}',
            "line 1: .* with the roles system",
        ),
        ("d.jsonl", "[1, 2]", r"line 1: it holds \[1, 2\]; a row is a JSON object"),
        ("d.json", "{}", "it holds a dict; a JSON data file is a list"),
        ("d.json", "[\n{]", "d.json, line 2, column 2: this is no JSON"),
        (
            "d.jsonl",
            r'{"question": "a \ud83d b", "answer": "c"}',
            r"line 1: .*'\\ud83d' at place 2 of 'a \\ud83d b' is half",
        ),
        ("d.csv", "question,answer\na,b\nc\n", "d.csv, line 3: 1 values for 2 columns"),
        ("d.csv", 'question,answer\na,"b\n', "d.csv, line 2: unexpected end"),
        ("d.tsv", "question\tanswer\n\ta\n", r"line 2, column 'question' \(prompt\): it is empty"),
    ],
)
def test_bad_rows_name_their_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_samples(path, QA)


def test_other_bad_sources(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*nowhere.csv"):
        load_samples(tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes("prompt\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.csv is not UTF-8"):
        load_samples(tmp_path / "latin.csv")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"is no data file; their names end in .jsonl"):
        load_samples(tmp_path / "notes.txt")
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_samples(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"row 0: no column 'prompt'; the columns are \['question'.*columns="):
        load_samples(ROWS)
    with pytest.raises(DataError, match="row 1: the id 'a' is also that of row 0"):
        load_samples([Sample("a", "b"), Sample("a", "c")])
    with pytest.raises(DataError, match="row 0: a row is"):
        load_samples(["text"])
    with pytest.raises(DataError, match="neither a file"):
        load_samples(3)
    with pytest.raises(DataError, match="the data has no rows"):
        load_samples([])
    with pytest.raises(DataError, match="split 'train' of the data has no rows"):
        load_samples({"train": []})


def test_data_sets_by_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(tmp_path / "saved")
    assert len(load_samples(tmp_path / "saved", QA)["train"]) == 40
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: saved if name == "org/name" else 1 / 0)
    assert len(load_samples("org/name", QA)["train"]) == 40
    with pytest.raises(DataError, match="no data set could be loaded as 'no/such': ZeroDivisionError"):
        load_samples("no/such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'textgym\[datasets\]'"):
        load_samples("org/name")


def test_an_empty_split_names_the_remedy():
    task = DataTask([Sample(i, "p") for i in "abc"], stop=["\n"])
    assert task.stop == ["\n"]
    empty = next(
        split for split in ("validation", "test") if split not in load_samples([Sample(i, "p") for i in "abc"])
    )
    with pytest.raises(DataError, match=rf"no samples in the split '{empty}' \(.*\)\..*split='all'.*columns=.*data="):
        task.samples(empty)


def test_samples_check_themselves():
    with pytest.raises(DataError, match=r"references are a tuple of texts, not 'Paris'"):
        Sample("a", "p", "Paris")
    with pytest.raises(DataError, match=r"references are a tuple"):
        Sample("a", "p", (3,))
    for prompt in (3, [], [{"role": "user"}], [{"role": "robot", "content": "x"}], ["x"]):
        with pytest.raises(DataError, match="a prompt is a text or a list of messages"):
            Sample("a", prompt)
    for texts in (
        {"prompt": "\ud800"},
        {"prompt": "p", "references": ("x", "\udfff")},
        {"id": "\ud800", "prompt": "p"},
    ):
        with pytest.raises(DataError, match="half of a surrogate pair"):
            Sample(**{"id": "a", **texts})


def test_real_rows_through_an_environment(tokenizer, tmp_path):
    path = write_rows(tmp_path / "data.csv", ROWS)
    env = textgym.TokenEnv(
        DataTask(path, QA), reward=lambda response, references: float(response == references[0]), tokenizer=tokenizer
    )
    env.reset(seed=0)
    reply = env.setting.renderer.reply_ids(env.episode.sample.references[0])
    assert env.step_turn(reply)[1].sum() == 1.0


class Lines(BuiltinTask):
    layouts = MappingProxyType(
        {
            "pairs": Layout("someone/pairs", columns={"prompt": "question", "references": "answer"}),
            "dialogues": Layout("someone/dialogues", "plain", rows=lambda row: _exchanges(row["turns"])),
        }
    )
    stop = ("\n",)

    @classmethod
    def builtin(cls):
        return [Sample(str(i), f"{i}", (str(i),)) for i in range(200)]


def _exchanges(turns):
    if len(turns) % 2:
        raise ValueError(f"{len(turns)} turns")
    return [{"prompt": turns[i], "references": turns[i + 1]} for i in range(0, len(turns), 2)]


def test_built_in_samples_are_divided_by_their_ids():
    task = Lines()
    assert len(task.samples("all")) == 200
    assert 100 < len(task.samples("train")) < 140
    assert 25 < len(task.samples("warm_start")) < 55
    for split in ("train", "validation", "test"):
        assert {split_of(sample.id) for sample in task.samples(split)} == {split}
    assert {split_of(sample.id) for sample in task.samples("warm_start")} == {"train"}
    assert task.warm_start_samples() == task.samples("warm_start")
    assert sum(len(task.samples(split)) for split in ("warm_start", "train", "validation", "test")) == 200
    assert task.stop == ("\n",)


def test_demonstrations_and_lessons_begin_with_a_blank():
    task, two = Lines(), ("Because.", "Why not?")
    assert task.demonstration(Sample("a", "Why?", two)) == [" Because."]
    assert task.demonstration(Sample("a", "Why?", two, {"demonstration": "Dunno."})) == [" Dunno."]
    assert task.demonstration(Sample("a", "Why?")) is None
    assert task.lesson(Sample("a", "Why?", two, {"demonstration": "Dunno."})) == [" Because."]
    assert task.lesson(Sample("a", "Why?")) is None


def test_the_warm_start_of_data_of_ones_own_is_their_train_split():
    task = Lines([{"prompt": "a", "references": "b", "split": "train"}, {"prompt": "c", "split": "test"}])
    assert task.warm_start_samples() == task.samples("train")


def test_a_layout_names_the_columns_of_a_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer\nWhy?,Because.\n")
    (sample,) = Lines(path, "pairs").samples("all")
    assert (sample.prompt, sample.references) == ("Why?", ("Because.",))
    assert Lines(path, {"prompt": "answer"}).samples("all")[0].prompt == "Because."


@pytest.mark.parametrize(("name", "text"), [("a.tsv", 'Why?\t"Because."\n'), ("a.csv", 'Why?,"""Because."""\n')])
def test_a_layout_gives_a_table_the_header_that_it_lacks(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    layout = Layout("someone/lines", columns={"prompt": "en", "references": "xx"}, header=("en", "xx"))
    (sample,) = everything(path, layout)
    assert (sample.prompt, sample.references) == ("Why?", ('"Because."',))
    path.write_text(text + "Who?\n")
    with pytest.raises(DataError, match=r"line 2: 1 values for 2 columns \['en', 'xx'\]"):
        load_samples(path, layout)
    rows = [{"en": "Why?", "xx": "Because."}]
    assert everything(write_rows(tmp_path / "a.jsonl", rows), layout)[0].references == ("Because.",)


def test_a_layout_makes_several_samples_of_a_row(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    path.write_text('{"turns": ["Hi.", "Hello.", "Bye.", "So long."]}\n{"turns": []}\n')
    samples = Lines(path, "dialogues").samples("all")
    assert {(sample.prompt, sample.references) for sample in samples} == {("Hi.", ("Hello.",)), ("Bye.", ("So long.",))}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"turn": []}', r"line 1: this is no row of someone/dialogues: no column 'turns'"),
        ('{"turns": ["Hi."]}', r"line 1: this is no row of someone/dialogues: 1 turns"),
        ('{"turns": null}', r"line 1: this is no row of someone/dialogues"),
    ],
)
def test_a_row_that_does_not_fit_its_layout_is_named(tmp_path, line, message):
    path = tmp_path / "dialogues.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        Lines(path, "dialogues")


def test_a_layout_that_there_is_not_is_named(tmp_path):
    with pytest.raises(DataError, match="Lines knows no layout 'squad'; there are 'pairs', 'dialogues'"):
        Lines([{"prompt": "a"}], "squad")
    with pytest.raises(DataError, match="columns='squad' without data"):
        Lines(columns="squad")
    with pytest.raises(DataError, match="columns='squad'"):
        DataTask([{"prompt": "a"}], "squad")


def test_the_name_of_a_layout_is_a_data_set_of_the_hub(monkeypatch):
    loaded = {}

    def load_dataset(name, config=None):
        loaded["call"] = (name, config)
        return {"train": [{"turns": ["a", "b"]}], "dev": [{"turns": ["c", "d"]}]}

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    task = Lines("dialogues")
    assert loaded["call"] == ("someone/dialogues", "plain")
    assert task.samples("validation")[0].references == ("d",)
