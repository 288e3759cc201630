"""The README's Python blocks run as they stand, and print what it says; the examples run too."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from textgym.run_folder import EPISODES, RunFolder

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(  # code, and what it prints where that follows
    r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, printed = BLOCKS[number]
    exec(compile(code, f"README.md, Python block {number + 1}", "exec"), {"__name__": "__main__"})
    if printed:
        assert capsys.readouterr().out == printed


def test_some_blocks_say_what_they_print():
    assert sum(bool(printed) for _, printed in BLOCKS) >= 2


SMALLER = {  # of examples that take longer as they are
    "hallucination": ["--questions", "16", "--steps", "64", "--agents", "SFT", "best-of-8", "DPO", "PPO"]
}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *SMALLER.get(path.stem, [])])
    runpy.run_path(str(path), run_name="__main__")


def test_the_figures_of_hallucination_bear_any_reply_and_an_agent_that_failed(tmp_path):
    row = {"agent": "a", "status": "ok", "reward": 1.0, "metrics": {}, "turns": [{"text": "one\u2028two\x85"}]}
    RunFolder(tmp_path).write_lines(EPISODES, [row, {**row, "agent": "b", "status": "down", "reward": None}])
    figures = runpy.run_path(str(ROOT / "examples" / "hallucination.py"))["figures"](tmp_path)
    assert figures["a"]["reward"] == 1.0
    assert all(math.isnan(value) for value in figures["b"].values())


def test_readme_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [line.split("#")[0].strip() for line in first.group(1).splitlines()] == ["make run", "make test"]


def test_the_commands_exist():
    for target in ("run", "test", "check", "test-slow"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
