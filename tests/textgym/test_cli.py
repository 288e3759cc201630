import json

import pytest
import tiny_run
from typer.testing import CliRunner

import textgym
import textgym.cli
from textgym.cli import _columns, _free_folder, _option, app, results_table
from textgym.errors import ConfigurationError

TINY = [f"--set={name}={value}" for name, value in tiny_run.OPTIONS.items() if name != "total_timesteps"]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return tiny_run.save_model(tmp_path_factory.mktemp("model"), tokenizer)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("Error: ")
    assert len(lines) == 1
    return lines[0]


def test_list_names_every_environment():
    result = run("list")
    assert result.exit_code == 0
    assert "textgym/KnowledgeQA-v0" in result.output.splitlines()
    assert set(textgym.registered_ids()) <= set(result.output.splitlines())


def test_list_names_every_reward():
    result = run("list", "--rewards")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines()[1:] if line and not line.startswith(" ")]
    assert {"Abstain", "Rouge", "RewardModel"} <= set(names) <= set(textgym.rewards.__all__)
    assert not {"Reward", "Score", "clip"} & set(names)


@pytest.mark.parametrize("place", ["file/figures.json", "."])
def test_where_nothing_can_be_written_nothing_is_evaluated(model, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(textgym.cli, "_evaluate", lambda *_: pytest.fail("evaluated"))
    assert "[Errno" in error_of("evaluate", tiny_run.ENV, "--model", model, "--out", place)


def test_train_then_evaluate(model, tmp_path):
    out = tmp_path / "run"
    result = run("train", tiny_run.ENV, "--model", model, "--total-timesteps", 40, "--seed", 3, "--out", out, *TINY)
    assert result.exit_code == 0, result.output
    for word in ("base model", "warm start", "PPO", "reward", "accuracy", "curves.png"):
        assert word in result.output
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["options"]["total_timesteps"]) == (3, 40)

    file = tmp_path / "figures" / "test.json"
    result = run("evaluate", tiny_run.ENV, "--model", out / "agent", "--out", file, *TINY)
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text())["metrics"] == json.loads((out / "results.json").read_text())["stages"]["ppo"]

    result = run("evaluate", tiny_run.ENV, "--model", model, "--split", "validation", "--sample", *TINY)
    assert result.exit_code == 0, result.output


def test_a_stopped_run_says_how_to_go_on(model, tmp_path, monkeypatch):
    from textgym.agents.training import Training

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_warm_start", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        result = run("train", tiny_run.ENV, "--model", model, "--total-timesteps", 40, "--out", out, *TINY)
    assert result.exit_code == 130
    assert f"textgym train --resume {out}" in " ".join(result.output.split())
    result = run("train", "--resume", out)
    assert result.exit_code == 0, result.output
    assert list(json.loads((out / "results.json").read_text())["stages"]) == ["base", "sft", "ppo"]


def test_replies_and_names_are_data_and_not_markup(capsys):
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    table = results_table({"[red]stage": {"[bold]metric": estimate}}, "[link=x]title")
    from rich.console import Console

    Console(width=100).print(table)
    output = capsys.readouterr().out
    for text in ("[red]stage", "[bold]metric", "[link=x]title", "0.500 [0.25, 0.75]"):
        assert text in output


def test_data_of_ones_own_with_columns_and_a_reward(model, tmp_path, monkeypatch):
    rows = ["country,city", *(f"Land {i},City {i}" for i in range(60))]
    (tmp_path / "facts.csv").write_text("\n".join(rows))
    (tmp_path / "brevity.py").write_text("def brevity(response): return -len(response)\n")
    monkeypatch.chdir(tmp_path)
    columns = "prompt=In {country}, what is the capital?,references=city"
    result = run(
        "evaluate", "textgym/KnowledgeQA-v0", "--model", model, "--data", "facts.csv", "--columns", columns,
        "--reward", "brevity:brevity", "--out", "figures.json", "--set", "env.max_new_tokens=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert -60 < json.loads((tmp_path / "figures.json").read_text())["metrics"]["reward"]["value"] <= 0


def test_an_evaluation_shows_what_could_not_be_scored(model, tmp_path, monkeypatch):
    (tmp_path / "services.py").write_text(
        "def service(episode):\n"
        "    if episode.sample.id != 'test5':\n"
        "        raise ConnectionError('down')\n"
        "    return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run(
        "evaluate", tiny_run.ENV, "--model", model, "--reward", "services:service", "--out", "figures.json", *TINY
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("no score: service: ConnectionError: down") == 3
    for i in range(3):
        assert f"sample 'test{i}'\n    prompt '{20 + i}+1='\n    reply " in result.output
    assert "unscored episodes" in result.output
    metrics = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert (metrics["unscored"]["value"], metrics["unscored"]["n"]) == (5, 6)
    assert (metrics["reward"]["value"], metrics["reward"]["n"]) == (1.0, 1)


def test_columns_and_settings_are_read():
    assert _columns(["prompt=Where is {x}, roughly?,references=y"]) == {
        "prompt": "Where is {x}, roughly?",
        "references": "y",
    }
    assert _columns(["prompt=a", "prompt=b"]) == [{"prompt": "a"}, {"prompt": "b"}]
    assert _columns(None) is None
    assert _option("a=1e-3") == ("a", 1e-3)
    assert _option("a=true") == ("a", True)
    assert _option("a=None") == ("a", None)
    assert _option("a=(1, 2)") == ("a", (1, 2))
    assert _option("a=some text=b") == ("a", "some text=b")
    with pytest.raises(ConfigurationError, match="NAME=VALUE"):
        _option("a")
    assert _columns(["squad_v2"]) == "squad_v2"
    for wrong in (["question of a"], ["prompt="], ["squad_v2", "prompt=a"]):
        with pytest.raises(ConfigurationError, match="--columns takes"):
            _columns(wrong)


def test_a_new_run_gets_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = _free_folder("textgym/KnowledgeQA-v0")
    assert str(first) == "runs/KnowledgeQA-v0-0"
    first.mkdir(parents=True)
    assert str(_free_folder("textgym/KnowledgeQA-v0")) == "runs/KnowledgeQA-v0-1"


def test_bad_input_is_one_line(model, tmp_path):
    out = ["--out", tmp_path / "run"]
    assert "Did you mean 'textgym/KnowledgeQA-v0'" in error_of("train", "textgym/KnowlegeQA-v0", *out)
    assert "Did you mean 'textgym/KnowledgeQA-v0'" in error_of("evaluate", "textgym/KnowlegeQA-v0")
    assert "there is no model './nowhere/at/all'" in error_of(
        "train", tiny_run.ENV, "--model", "./nowhere/at/all", *out
    )
    assert "no setting 'ppo.x'" in error_of("train", tiny_run.ENV, "--model", model, "--set", "ppo.x=1", *out)
    assert "which environment?" in error_of("train")
    assert "holds no training run" in error_of("train", "--resume", tmp_path)
    assert "leave out ENV, --seed." in error_of("train", tiny_run.ENV, "--resume", tmp_path, "--seed", 1)
    assert "there is no data file" in error_of("train", tiny_run.ENV, "--model", model, "--data", "no.csv", *out)
    assert "module:name" in error_of("evaluate", tiny_run.ENV, "--model", model, "--reward", "x")
    assert not (tmp_path / "run").exists()


def test_an_empty_file_and_a_row_without_its_column_are_one_line(model, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "rows.csv").write_text("question,answer\nWhy?,\n")
    arguments = ["evaluate", "textgym/KnowledgeQA-v0", "--model", model]
    arguments += ["--columns", "prompt=question,references=reply"]
    assert "has no rows" in error_of(*arguments, "--data", tmp_path / "empty.csv")
    error = error_of(*arguments, "--data", tmp_path / "rows.csv")
    for part in (
        "rows.csv, line 2, column 'reply' (references)",
        "it is missing; the columns are ['question', 'answer']",
    ):
        assert part in error
