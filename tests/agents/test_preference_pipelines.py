"""The example of the two pipelines, one command each, on real preferences."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import shared_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "preferences.py"
SMALL = ["--limit", "200", "--epochs", "1", "--ppo-steps", "1500", "--episodes", "20", "--max-new-tokens", "24"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("sentence_polarity/sentence_polarity.jsonl", "--layout sentence_polarity --opening 4"),
        ("taskmaster_reward/TM-4-2024.jsonl", "--layout taskmaster"),
    ],
)
def test_both_pipelines_end_in_one_table(file, options, tmp_path):
    data = shared_data(file)
    printed = {}
    for pipeline in ("ppo", "dpo"):
        command = [sys.executable, str(EXAMPLE), pipeline, str(data), *options.split(), *SMALL, "--out", str(tmp_path)]
        printed[pipeline] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "sft: " in printed["ppo"]
    assert "sft: " not in printed["dpo"]  # it is taken from the first
    agents = json.loads((tmp_path / "benchmark" / "summary.json").read_text())["agents"]
    assert list(agents) == ["base", "sft", "ppo", "dpo", "reference"]
    assert all(of_task["failed"] == 0 for of_agent in agents.values() for of_task in of_agent.values())
    report = (tmp_path / "report.md").read_text()
    assert report in printed["dpo"]
    for line in ("sft less base", "ppo less sft", "dpo less sft", "ppo less dpo"):
        assert f"- {line}, judged on the same prompts: " in report
    held_out = json.loads((tmp_path / "reward_model.json").read_text())
    assert list(held_out) == ["reward_model", "judge"]
    for found in held_out.values():
        assert 0 <= found["pairs"]["low"] <= found["pairs"]["value"] <= found["pairs"]["high"] <= 1
        assert "pairs of the same prompt" in found
