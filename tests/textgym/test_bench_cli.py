"""``textgym bench``: from the command line and from a file."""

import json
import textwrap

import pytest
from typer.testing import CliRunner

from textgym.cli import app

COPY = "textgym/Copy-v0"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def played(tmp_path):
    run("--agents", "random,right=reference", "--tasks", COPY, "--episodes", 5, "--seeds", 2, "--out", tmp_path / "a")
    return tmp_path / "a"


def test_agents_are_played_and_the_same_command_goes_on(played):
    rows = (played / "episodes.jsonl").read_text()
    assert len(rows.splitlines()) == 20
    output = run("--agents", "random,right=reference", "--tasks", COPY, "--episodes", 5, "--seeds", 2, "--out", played)
    assert "0 of 10 episodes to play" in output
    assert "1.000 [1.00, 1.00]" in output
    assert (played / "episodes.jsonl").read_text() == rows
    config = json.loads((played / "config.json").read_text())
    assert config["tasks"][COPY]["samples"]
    assert config["versions"]["textgym"]


def test_replies_are_scored_anew_and_folders_compared(played, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards_of_a_test.py").write_text("def length(response):\n    return len(response)\n")
    output = run("--rescore", played, "--reward", "own_rewards_of_a_test:length")
    assert "8.000 [8.00, 8.00]" in output
    assert (played / "rescored" / "own_rewards_of_a_test.length" / "table.md").is_file()
    assert "no benchmark" in run("--rescore", tmp_path, "--reward", "own_rewards_of_a_test:length", code=2)
    assert "right, textgym/Copy-v0: +0.000 [0.000, 0.000], p = 1.0000, n = 10" in run("compare", played, played)


def test_a_stopped_benchmark_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopped_agent_of_a_test.py").write_text(
        "class Agent:\n    def act(self, observations):\n        raise KeyboardInterrupt\n"
    )
    arguments = ["--agents", "stopped_agent_of_a_test:Agent", "--tasks", COPY, "--out", "x"]
    assert "The same command goes on." in run(*arguments, code=130)


def test_an_agent_may_be_one_by_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "class Agent:\n    def act(self, observations):\n        return [{0!r} for _ in observations]\n"
    for task in ("Copy", "Identity"):
        (tmp_path / f"agent_for_{task}.py").write_text(own.format(task))
    tasks = f"{COPY},textgym/Identity-v0"
    run("--agents", "own=agent_for_{task}:Agent", "--tasks", tasks, "--episodes", 2, "--seeds", 1, "--out", "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()]
    assert [(row["task"], row["turns"][0]["text"]) for row in rows] == [(COPY, "Copy")] * 2 + [
        ("textgym/Identity-v0", "Identity")
    ] * 2


def test_a_file_sets_up_larger_ones(tmp_path):
    (tmp_path / "bench.toml").write_text(
        textwrap.dedent(
            f"""
            episodes = 3
            seeds = 1
            out = {str(tmp_path / "b")!r}

            [agents]
            right = "reference"

            [agents.best]
            type = "best-of-n"
            n = 2
            agent = {{type = "model", deterministic = false}}

            [tasks."textgym/Classification-v0"]
            max_new_tokens = 4

            [tasks."{COPY}"]
            """
        )
    )
    run("--config", tmp_path / "bench.toml", "--episodes", 2)
    rows = [json.loads(line) for line in (tmp_path / "b" / "episodes.jsonl").read_text().splitlines()]
    assert {(row["agent"], row["task"]) for row in rows} == {
        (agent, task) for agent in ("right", "best") for task in ("textgym/Classification-v0", COPY)
    }
    assert len(rows) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "random"], "--tasks, --out"),
        (["--agents", "random", "--tasks", "textgym/Coppy-v0", "--out", "x"], "textgym/Copy-v0"),
        (["--agents", "./no-such-folder", "--tasks", COPY, "--out", "x"], "no-such-folder"),
        (["--agents", "no_such_module:agent", "--tasks", COPY, "--out", "x"], "no_such_module"),
        (["--rescore", "x"], "--reward"),
        (["--rescore", "x", "--reward", "m:f", "--agents", "random", "--batch", 3], "leave out --batch, --agents"),
        (["--rescore", "x", "--reward", "m:f", "--config", "y.toml"], "leave out --config"),
        (["--agents", "random", "--tasks", COPY, "--out", "x", "--reward", "m:f"], "--reward m:f is for --rescore"),
        (["--agents", "a=random,a=abstain", "--tasks", COPY, "--out", "x"], "two agents of the name 'a'"),
        (["--agents", "random,random", "--tasks", COPY, "--out", "x"], "two agents of the name 'random'"),
        (["--agents", "=random", "--tasks", COPY, "--out", "x"], "'=random'"),
        (["--agents", "a=", "--tasks", COPY, "--out", "x"], "'a='"),
        (["--agents", "random", "--tasks", "CartPole-v1", "--out", "x"], "no environment of textgym's"),
        (["--agents", "openai:m@http://[::1/v1", "--tasks", COPY, "--out", "x"], "http://[::1/v1"),
        (["--agents", "broken_module:agent", "--tasks", COPY, "--out", "x"], "broken_module.py"),
        (["--agents", "good_module:number", "--tasks", COPY, "--out", "x"], "'good_module:number' is no agent"),
        (["--agents", "good_module:Needs", "--tasks", COPY, "--out", "x"], "'good_module:Needs' is no agent"),
        (["--agents", "random", "--tasks", COPY, "--out", "good_module.py/x"], "good_module.py"),
        (["--config", "no-such-file.toml"], "no-such-file.toml"),
        (["compare", "x", "y"], "no benchmark"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_module.py").write_text("def agent(:")
    (tmp_path / "good_module.py").write_text("number = 5\nclass Needs:\n    def __init__(self, more): ...\n")
    output = run(*arguments, code=2)
    assert output.startswith("Error: ")
    assert message in output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episodes = ", "cannot read"),
        ("epochs = 3\nout = 'x'\nagents = ['random']\ntasks = ['textgym/Copy-v0']", "'epochs'"),
        ("out = 3\nagents = ['random']\ntasks = ['textgym/Copy-v0']", "out=3"),
        ("out = 'x'\nagents = {a = 3}\ntasks = ['textgym/Copy-v0']", "not 3"),
        ("out = 'x'\nagents = {a = ['random']}\ntasks = ['textgym/Copy-v0']", "not ['random']"),
        ("out = 'x'\nagents = {a = {type = ['random']}}\ntasks = ['textgym/Copy-v0']", "not ['random']"),
        ("out = 'x'\nagents = ['random']\ntasks = 'textgym/Copy-v0'", "list of ids"),
        ("out = 'x'\nagents = ['m:{task}']\ntasks = 3", "list of ids"),
        ("out = 'x'\nagents = ['random']\nbatch = 0\ntasks = ['textgym/Copy-v0']", "batch=0"),
        ("out = 'x'\nagents = 3\ntasks = ['textgym/Copy-v0']", "agents"),
        ("out = 'x'\ntasks = ['textgym/Copy-v0']\n[agents.a]\ntype = 'modell'", "Did you mean 'model'"),
        ("out = 'x'\ntasks = ['textgym/Copy-v0']\n[agents.a]\ntype = 'random'\nheat = 3", "heat"),
    ],
)
def test_mistakes_in_a_file_are_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.toml").write_text(text)
    assert message in run("--config", "bench.toml", code=2)
