"""Figures, tables and pictures of a benchmark's rows."""

import pytest

from textgym.benchmark_plots import _coverage, plot_benchmark
from textgym.benchmark_report import markdown, short_names, summarise_rows
from textgym.comparison import clustered_mean
from textgym.run_folder import RunFolder


def row(agent, task="demo/A-v0", index=0, reward=1.0, status="ok", **metrics):
    reward = reward if status == "ok" else None
    return {
        "agent": agent,
        "task": task,
        "seed": 0,
        "index": index,
        "turns": [{"role": "assistant", "text": "a"}],
        "status": status,
        "reward": reward,
        "metrics": metrics,
        "usage": {},
    }


def summary_of(rows):
    tasks = dict.fromkeys((row["task"] for row in rows), ())
    return summarise_rows(rows, list(dict.fromkeys(row["agent"] for row in rows)), tasks)


def test_the_normalised_mean_says_over_which_tasks_it_is():
    rewards = {"random": (0.0, 1.0), "reference": (2.0, 0.5), "mine": (1.0, 3.0)}
    rows = [row(a, t, reward=r) for a, pair in rewards.items() for t, r in zip(("d/A-v0", "d/B-v0"), pair, strict=True)]
    summary = summary_of(rows)
    assert summary["normalised"] == {"random": 0.0, "reference": 1.0, "mine": 0.5}
    assert summary["normalised_over"] == ["d/A-v0"]
    assert "| **normalised mean** over 1 of 2 tasks: A | 0.00 | 1.00 | 0.50 |" in markdown(summary)
    assert "| **normalised mean** |" in markdown(summary_of(rows[::2]))
    assert "normalised" not in markdown(summary_of(rows[1::2]))


def test_of_many_reasons_the_commonest_are_shown_shortened():
    rows = [row("a", index=i, status=f"\x1b[31mE{i}\n" + "x" * 1000) for i in range(10)]
    rows += [row("a", index=i, status="down") for i in range(10, 13)]
    summary = summary_of(rows)
    figures = summary["agents"]["a"]["demo/A-v0"]
    assert len(figures["reasons"]) == 5
    assert (figures["reasons"]["down"], figures["other_reasons"], figures["failed"]) == (3, 6, 13)
    table = markdown(summary)
    assert "3 of 13 episodes failed: `down`" in table
    assert "6 of 13 episodes failed for other reasons" in table
    assert "\x1b" not in table
    assert len(table) < 2000


def test_tasks_of_the_same_short_name_are_told_apart():
    tasks = ["a/Math-v0", "b/Math-v0", "b/Math-v1", "b/Code-v0"]
    assert list(short_names(tasks).values()) == [*tasks[:3], "Code"]
    table = markdown(summary_of([row("a", task) for task in tasks]))
    assert all(f"| {name} |" in table for name in (*tasks[:3], "Code"))


@pytest.mark.parametrize("name", ["$x^$", "cost $5 vs $6_{", "_hidden", "\\frac", "x" * 300])
def test_agents_may_be_called_anything(tmp_path, name):
    rows = [row(name, index=i, reward=float(i % 2)) for i in range(4)]
    paths = plot_benchmark(RunFolder(tmp_path), summary_of(rows), rows, {})
    assert [path.name for path in paths] == ["rewards.png", "lengths.png"]


def test_the_interval_of_the_right_answers_knows_of_clusters():
    rows = [row("a", index=i % 10, accuracy=float(i % 2), abstention_rate=float(i % 10 > 7)) for i in range(100)]
    share, estimate = _coverage(rows)
    right = [i % 2 for i in range(100) if i % 10 <= 7]
    assert share == 0.8
    assert estimate == clustered_mean(right, [i % 10 for i in range(100) if i % 10 <= 7])
