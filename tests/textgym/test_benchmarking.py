"""Agents compared: pairing, failures, resuming, scoring anew, comparing folders."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import pytest

import textgym
from textgym import Sample, Task
from textgym.agent import Reply
from textgym.agents import BestOfN
from textgym.benchmarking import EPISODES, TABLE, benchmark, compare, rescore
from textgym.errors import ConfigurationError, UnknownEnvironmentError
from textgym.monitor import Monitor
from textgym.rewards import Abstain
from textgym.run_folder import RunFolder


class Sums(Task):
    """Ten sums."""

    reward = staticmethod(lambda response, references: float(response.strip() == references[0]))

    def samples(self, split):
        return [Sample(str(i), f"{i}+1=", (str(i + 1),)) for i in range(10)]

    def metrics(self, episodes):
        return {"right": sum(e.response.strip() == e.sample.references[0] for e in episodes) / len(episodes)}


class Guessing(Task):
    """Two turns, the second one's answer by chance."""

    reward = staticmethod(lambda episode: float(episode.turns[1].text in episode.response))

    def samples(self, split):
        return [Sample(str(i), [{"role": "user", "content": f"Round {i}"}]) for i in range(4)]

    def respond(self, episode, rng):
        return str(rng.integers(10)) if len(episode.responses) == 1 else None


class Right:
    def act(self, observations):
        return [o.episode.sample.references[0] for o in observations]


class Even:
    """Right where the answer is even."""

    def act(self, observations):
        answers = [int(o.episode.sample.references[0]) for o in observations]
        return [str(answer - answer % 2) for answer in answers]


class Echo:
    def act(self, observations):
        return [o.messages[-1]["content"] for o in observations]


class Chance:
    """Draws from the observation's seed."""

    def act(self, observations):
        return [str(random.Random(o.seed).randrange(10)) for o in observations]


@pytest.fixture(autouse=True)
def tasks():
    textgym.register("demo/Sums-v0", task=Sums)
    textgym.register("demo/Guessing-v0", task=Guessing)


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / EPISODES).read_text(encoding="utf-8").splitlines()]


def test_every_agent_meets_the_same_samples_and_chance(tmp_path):
    agents = {"echo": Echo(), "chance": Chance(), "again": Chance()}
    benchmark(agents, ["demo/Guessing-v0"], out=tmp_path, seeds=3)
    rows = rows_of(tmp_path)
    assert len(rows) == 3 * 3 * 4
    answers = {
        name: {(r["seed"], r["index"]): r["turns"][1]["text"] for r in rows if r["agent"] == name} for name in agents
    }
    assert answers["echo"] == answers["chance"] == answers["again"]
    assert len(set(answers["echo"].values())) > 3
    replies = {name: [r["turns"][0]["text"] for r in rows if r["agent"] == name] for name in agents}
    assert replies["chance"] == replies["again"]
    assert len(set(replies["chance"])) > 3


def test_the_figures_are_those_of_the_episodes(tmp_path):
    agents = {"random": Echo(), "reference": Right(), "even": Even()}
    summary = benchmark(agents, ["demo/Sums-v0"], out=tmp_path, seeds=2)
    figures = summary["agents"]["even"]["demo/Sums-v0"]
    assert figures["reward"]["value"] == 0.5
    assert figures["metric"] == figures["reward"]
    assert figures["reward"]["low"] < 0.5 < figures["reward"]["high"]
    assert (figures["episodes"], figures["failed"]) == (20, 0)
    assert summary["normalised"] == {"random": 0.0, "reference": 1.0, "even": 0.5}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    table = (tmp_path / TABLE).read_text()
    assert "| Sums | 0.000 [0.00, 0.00] | 1.000 [1.00, 1.00] | 0.500 [" in table
    assert "| **normalised mean** | 0.00 | 1.00 | 0.50 |" in table


def test_two_agents_have_a_paired_difference(tmp_path):
    summary = benchmark({"right": Right(), "even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    difference = summary["differences"]["demo/Sums-v0"]
    assert difference["value"] == 0.5
    assert difference["p"] == pytest.approx(2 / 2**5, abs=0.01)  # five samples differ, all to one side
    assert "right less even 0.500" in (tmp_path / TABLE).read_text()


def test_an_agent_may_be_one_by_task(tmp_path):
    tasks = ["demo/Sums-v0", "demo/Guessing-v0"]
    agents = {"echo": Echo(), "trained": {"demo/Sums-v0": Right()}}
    figures = benchmark(agents, tasks, out=tmp_path, seeds=1)["agents"]["trained"]
    assert figures["demo/Sums-v0"]["reward"]["value"] == 1.0
    assert figures["demo/Guessing-v0"]["episodes"] == 0
    assert "] |  |" in (tmp_path / TABLE).read_text()
    assert not any(row["agent"] == "trained" for row in rows_of(tmp_path) if row["task"] == "demo/Guessing-v0")
    with pytest.raises(ConfigurationError, match="holds a benchmark with other agents"):
        benchmark(agents | {"trained": {"demo/Sums-v0": Even()}}, tasks, out=tmp_path, seeds=1)


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    agents = {"even": Even(), "right": Right()}
    benchmark(agents, ["demo/Sums-v0"], out=tmp_path / "sums", seeds=1)
    assert {path.name for path in (tmp_path / "sums").glob("*.png")} == {"rewards.png", "lengths.png"}
    textgym.register("demo/Unsure-v0", task=Unsure)
    even = Even()
    even.name = str(tmp_path / "run" / "agent")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"env": "demo/Unsure-v0"}')
    row = {"timesteps": 0, "metrics": {"reward": {"value": 0.5}}}
    (tmp_path / "run" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    benchmark({"even": even, "right": Right()}, ["demo/Unsure-v0"], out=tmp_path / "unsure", seeds=1)
    names = {"rewards.png", "lengths.png", "coverage.png", "curves.png"}
    assert {path.name for path in (tmp_path / "unsure").glob("*.png")} == names


class Unsure(Sums):
    """An even answer is an abstention."""

    def metrics(self, episodes):
        abstained = [int(e.response) % 2 == 0 for e in episodes]
        return {"accuracy": super().metrics(episodes)["right"], "abstention_rate": sum(abstained) / len(abstained)}


class Failing:
    """Raises, answers with nonsense, fails by itself, and is right, by sample."""

    def act(self, observations):
        replies = []
        for o in observations:
            number = int(o.episode.sample.id)
            if number == 3:
                raise RuntimeError("no `connection` | at all")
            replies.append(
                {4: 7, 5: Reply(failure="server: 500"), 6: Reply("7", "length", {"tokens": 2})}.get(
                    number, str(number + 1)
                )
            )
        return replies


def test_what_fails_is_counted_and_no_zero(tmp_path):
    def reward(response, references):
        if response == "9":
            raise ValueError("nine")
        return float(response == references[0])

    summary = benchmark({"failing": Failing()}, {"demo/Sums-v0": {"reward": reward}}, out=tmp_path, seeds=1)
    figures = summary["agents"]["failing"]["demo/Sums-v0"]
    assert (figures["episodes"], figures["failed"]) == (10, 4)
    assert figures["reward"]["value"] == 1.0
    assert figures["reward"]["n"] == 6
    assert figures["usage"] == {"tokens": 2}
    reasons = " ".join(figures["reasons"])
    for part in ("RuntimeError: no `connection`", "not 7", "server: 500", "ValueError: nine"):
        assert part in reasons
    failed = [row for row in rows_of(tmp_path) if row["status"] != "ok"]
    assert all(row["reward"] is None for row in failed)
    assert "1 of 10 episodes failed: `agent: RuntimeError: no 'connection' | at all`" in (tmp_path / TABLE).read_text()


def test_a_reply_that_was_cut_off_ends_the_episode(tmp_path):
    class CutOff:
        def act(self, observations):
            return [Reply("and then", "length") for _ in observations]

    benchmark({"cut": CutOff()}, ["demo/Guessing-v0"], out=tmp_path, seeds=1)
    for row in rows_of(tmp_path):
        assert (row["stop_reason"], len(row["turns"])) == ("length", 1)
        assert "IndexError" in row["status"]  # the task's reward looks at the second turn


def test_it_goes_on_where_it_stopped(tmp_path):
    whole = benchmark({"even": Even(), "chance": Chance()}, ["demo/Sums-v0"], out=tmp_path / "whole", batch=3)
    part = tmp_path / "part"
    benchmark({"even": Even(), "chance": Chance()}, ["demo/Sums-v0"], out=part, batch=4)
    lines = (part / EPISODES).read_bytes().splitlines(keepends=True)
    (part / EPISODES).write_bytes(b"".join(lines[:17]) + lines[17][:25])
    asked = []

    class Counting(Chance):
        __qualname__ = Chance.__qualname__

        def act(self, observations):
            asked.extend(observations)
            return super().act(observations)

    again = benchmark({"even": Even(), "chance": Counting()}, ["demo/Sums-v0"], out=part)
    assert again == whole
    assert (part / TABLE).read_text() == (tmp_path / "whole" / TABLE).read_text()
    assert len(asked) == 30
    assert len(rows_of(part)) == 60


KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
import textgym
from test_benchmarking import Chance, Even, Guessing, Sums
from textgym.benchmarking import benchmark

class Slow(Chance):
    def act(self, observations):
        time.sleep(0.02)
        return super().act(observations)

textgym.register("demo/Sums-v0", task=Sums)
textgym.register("demo/Guessing-v0", task=Guessing)
agents = {{"slow": Slow(), "even": Even()}}
benchmark(agents, ["demo/Sums-v0", "demo/Guessing-v0"], out={out!r}, seeds=12, batch=3)
"""


@pytest.mark.slow
def test_killed_ten_times_it_gives_the_same_table(tmp_path):
    def start(out):
        script = KILLED.format(folder=str(Path(__file__).parent), out=str(tmp_path / out))
        return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start("whole").wait() == 0
    rng = random.Random(0)
    file = tmp_path / "killed" / EPISODES
    sizes = [0]
    for _ in range(10):
        process = start("killed")
        until = sizes[-1] + rng.randint(200, 7000)  # bytes
        while (not file.is_file() or file.stat().st_size < until) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(file.stat().st_size)
    assert start("killed").wait() == 0
    assert len(set(sizes)) == 11  # each was killed at work
    assert sizes[-1] < (tmp_path / "whole" / EPISODES).stat().st_size
    keys = [(r["agent"], r["task"], r["seed"], r["index"]) for r in rows_of(tmp_path / "killed")]
    assert len(keys) == len(set(keys)) == 2 * 12 * 14
    for name in (TABLE, "summary.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_stored_replies_are_scored_anew_without_the_agents(tmp_path):
    agents = {"even": Even(), "failing": Failing()}
    benchmark(agents, ["demo/Sums-v0"], out=tmp_path, seeds=2)
    summary = rescore(tmp_path, lambda response: -float(response), "negative")
    even = summary["agents"]["even"]["demo/Sums-v0"]
    assert even["reward"]["value"] == -sum(n - n % 2 for n in range(1, 11)) / 10
    assert summary["agents"]["failing"]["demo/Sums-v0"]["failed"] == 6
    assert (tmp_path / "rescored" / "negative" / TABLE).is_file()
    assert [r["reward"] for r in rows_of(tmp_path) if r["agent"] == "even"][:2] == [0.0, 1.0]  # the first is as it was


@pytest.mark.parametrize("reason", ["eos", "stop_string", "length", "context"])
def test_replies_are_scored_anew_with_the_ends_that_they_had(tmp_path, reason):
    class Ends:
        def act(self, observations):
            return [Reply("1", reason) for _ in observations]

    benchmark({"ends": Ends()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    summary = rescore(tmp_path, lambda episode: float(episode.stop_reason == reason), "ends")
    assert summary["agents"]["ends"]["demo/Sums-v0"]["reward"]["value"] == 1.0


def test_stored_replies_are_scored_together_and_that_is_told(tmp_path):
    sizes = []

    class Batches(textgym.Reward):
        def score(self, episodes):
            sizes.append(len(episodes))
            return [textgym.Score(1.0) for _ in episodes]

    class Listening(Monitor):
        told = 0

        def progress(self, done, total, figures):
            self.told += 1

    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=2)
    monitor = Listening()
    rescore(tmp_path, Batches(), "batches", monitor)
    assert (sizes, monitor.told) == ([20], 20)


def test_samples_that_no_file_holds_cannot_be_scored_anew(tmp_path):
    data = [Sample(str(i), f"{i}+1=", (str(i + 1),)) for i in range(40)]
    benchmark({"even": Even()}, {"demo/Sums-v0": {"data": data}}, out=tmp_path, seeds=1, episodes=3)
    with pytest.raises(ConfigurationError, match=r"cannot be set up again.*give data as a file"):
        rescore(tmp_path, lambda response: 1.0, "one")


def test_conversations_are_scored_anew_as_they_went(tmp_path):
    benchmark({"echo": Echo()}, ["demo/Guessing-v0"], out=tmp_path, seeds=2)
    summary = rescore(tmp_path, lambda episode: float(len(episode.turns)), "turns")
    assert summary["agents"]["echo"]["demo/Guessing-v0"]["reward"]["value"] == 3.0


def test_two_folders_are_compared_episode_by_episode(tmp_path):
    for name, agent in (("a", Right()), ("b", Even())):
        benchmark({"mine": agent}, ["demo/Sums-v0"], out=tmp_path / name, seeds=1)
    assert compare(tmp_path / "a", tmp_path / "b")["mine"]["demo/Sums-v0"]["value"] == 0.5
    benchmark({"yours": Even()}, ["demo/Sums-v0"], out=tmp_path / "c", seeds=1)
    with pytest.raises(ConfigurationError, match="no scored episode"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ConfigurationError, match="no benchmark"):
        compare(tmp_path / "a", tmp_path)


def test_another_benchmark_in_the_same_folder_is_refused(tmp_path):
    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, episodes=3)
    for change in ({"episodes": 4}, {"seeds": 1}, {"split": "train"}):
        with pytest.raises(ConfigurationError, match=next(iter(change))):
            benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, **{"episodes": 3} | change)
    with pytest.raises(ConfigurationError, match="agents"):
        benchmark({"even": Right()}, ["demo/Sums-v0"], out=tmp_path, episodes=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path / "other")


def test_other_samples_are_noticed(tmp_path, monkeypatch):
    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    samples = Sums().samples("test")
    monkeypatch.setattr(Sums, "samples", lambda self, split: [*samples[:-1], Sample("9", "9+1=", ("11",))])
    with pytest.raises(ConfigurationError, match="tasks"):
        benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    with pytest.raises(ConfigurationError, match="not those that the benchmark was played on"):
        rescore(tmp_path, lambda response: 1.0, "one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"episodes": "3"}, "episodes='3'"),
        ({"seeds": 1.5}, "seeds=1.5"),
        ({"batch": 0}, "batch=0"),
        ({"batch": "8"}, "batch='8'"),
        ({"split": 3}, "split=3"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": "demo/Sums-v0"}, "tasks are a list of ids"),
        ({"tasks": {"demo/Sums-v0": "x"}}, "tasks are a list of ids"),
        ({"tasks": [["demo/Sums-v0"]]}, "tasks are a list of ids"),
        ({"tasks": {"demo/Sums-v0": {"split": "train"}}}, "split cannot be set"),
        ({"tasks": {"demo/Sums-v0": {"level": "token"}}}, "level cannot be set"),
        ({"tasks": {"demo/Sums-v0": {"max_context": 9}}}, "max_context cannot be set"),
        ({"tasks": {"demo/Sums-v0": {"max_new_tokens": "x"}}}, "max_new_tokens='x'"),
        ({"tasks": ["CartPole-v1"]}, "no environment of textgym's"),
        ({"agents": {}}, "at least one agent"),
        ({"agents": [Even()]}, "by name"),
        ({"agents": {7: Even()}}, "name is a text"),
        ({"agents": {"caf\ud800": Even()}}, "name is a text"),
        ({"agents": {" ": Even()}}, "name is a text"),
        ({"agents": {"even": Even(), "none": object()}}, "is no agent"),
        ({"agents": {"even": Even(), "class": Even}}, "Make an object"),
        ({"agents": {"by task": {"demo/Sums-v0": 3}}}, "3 is no agent"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_played(tmp_path, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        benchmark(**{"agents": {"even": Even()}, "tasks": ["demo/Sums-v0"], "out": tmp_path} | arguments)
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(UnknownEnvironmentError):
        benchmark({"even": Even()}, ["demo/Sum-v0"], out=tmp_path)


@pytest.mark.parametrize("as_option", [True, False])
def test_another_reward_is_another_benchmark(tmp_path, monkeypatch, as_option):
    def played(reward):
        monkeypatch.setattr(Sums, "reward", reward)
        options = {"reward": reward} if as_option else {}
        return benchmark({"even": Even()}, {"demo/Sums-v0": options}, out=tmp_path, episodes=3, seeds=1)

    played(Abstain(wrong=-1.5))
    played(Abstain(wrong=-1.5))
    with pytest.raises(ConfigurationError, match=r"other tasks: .*wrong=-1.5.*and is .*wrong=-4.0"):
        played(Abstain(wrong=-4.0))


def test_descriptions_are_the_same_in_every_process(tmp_path):
    class Odd(Sums):
        def samples(self, split):
            meta = MappingProxyType({1: {"alpha", "beta", "gamma"}, "b": object()})
            return [Sample(str(i), f"{i}+1=", (str(i + 1),), meta) for i in range(4)]

    textgym.register("demo/Odd-v0", task=Odd)
    benchmark({"best": BestOfN(Chance(), n=2)}, ["demo/Odd-v0"], out=tmp_path, seeds=1)
    assert " at 0x" not in (tmp_path / "config.json").read_text()
    benchmark({"best": BestOfN(Chance(), n=2)}, ["demo/Odd-v0"], out=tmp_path, seeds=1)


def test_a_tasks_budget_of_tokens_reaches_the_agents(tmp_path):
    class Budget:
        def act(self, observations):
            return [str(o.task.max_new_tokens) for o in observations]

    benchmark({"budget": Budget()}, {"demo/Sums-v0": {"max_new_tokens": 3}}, out=tmp_path, seeds=1, episodes=2)
    assert [row["turns"][0]["text"] for row in rows_of(tmp_path)] == ["3", "3"]


def test_an_agent_that_takes_its_time_is_shown_fewer(tmp_path):
    sizes = []

    class Slow(Right):
        at_a_time = 4

        def act(self, observations):
            sizes.append(len(observations))
            return super().act(observations)

    benchmark({"slow": Slow()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    assert sizes == [4, 4, 2]


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    def played():
        return benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)

    played()
    with RunFolder(tmp_path).alone(), pytest.raises(ConfigurationError, match="another process"):
        played()
    played()


def test_rows_that_come_twice_or_are_of_nothing_here_count_once_or_not_at_all(tmp_path):
    summary = benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    (first, *_) = rows = rows_of(tmp_path)
    foreign = [{**first, "index": 99999}, {**first, "agent": "stranger"}, {**first, "task": "demo/Other-v0"}]
    RunFolder(tmp_path).write_lines(EPISODES, [*rows, first, *foreign])
    assert benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1) == summary
    assert rescore(tmp_path, Sums.reward, "same")["agents"] == summary["agents"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"agent": "even", "ta', "line 3 is no JSON"),
        ("", "line 3 is no JSON"),
        ("\ufeff{}", "line 3 is no JSON"),
        ("[]", "line 3 holds a list"),
        ("{}", "line 3: there is no 'agent'"),
        ({"seed": "0"}, "line 3: 'seed' is '0'"),
        ({"reward": None}, "line 3: 'reward' is None where 'status' is 'ok'"),
        ({"turns": ["a"]}, "line 3: a turn"),
        ({"metrics": {"right": "yes"}}, "line 3: one of 'metrics'"),
    ],
)
def test_damaged_rows_are_named_by_their_line(tmp_path, line, message):
    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    lines = (tmp_path / EPISODES).read_text().splitlines()
    lines[2] = line if isinstance(line, str) else json.dumps({**json.loads(lines[2]), **line})
    (tmp_path / EPISODES).write_text("\n".join(lines) + "\n")
    for call in (
        lambda: benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1),
        lambda: compare(tmp_path, tmp_path),
        lambda: rescore(tmp_path, lambda response: 1.0, "one"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            call()


@pytest.mark.parametrize("damage", [{"tasks": 3}, {"tasks": {"demo/Sums-v0": 3}}, {"agents": ["even"]}])
def test_a_damaged_configuration_is_said_to_be_one(tmp_path, damage):
    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    folder = RunFolder(tmp_path)
    folder.write_json("config.json", {**folder.config, **damage})
    for call in (lambda: compare(tmp_path, tmp_path), lambda: rescore(tmp_path, lambda response: 1.0, "one")):
        with pytest.raises(ConfigurationError, match="is damaged"):
            call()


def test_what_was_left_of_a_kill_at_the_very_start_is_no_hindrance(tmp_path):
    (tmp_path / "config.partial.json").write_text("{")
    benchmark({"even": Even()}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    training = tmp_path / "training"
    RunFolder.create(training, {"env": "demo/Sums-v0"})
    with pytest.raises(ConfigurationError, match="holds no benchmark"):
        benchmark({"even": Even()}, ["demo/Sums-v0"], out=training, seeds=1)


class Fragile(Sums):
    """Cannot measure, answer or score the episodes about some samples."""

    def respond(self, episode, rng):
        if episode.sample.id == "1":
            raise RuntimeError("at a loss")
        return None

    def metrics(self, episodes):
        (episode,) = episodes
        return {"3": {"m": None}, "4": {"m": 1 / 2, "nan": float("nan")}}.get(episode.sample.id) or {
            "m": 1 / (int(episode.sample.id) - 2)
        }


def test_a_task_that_raises_fails_that_episode_alone(tmp_path):
    def reward(response):
        return textgym.Score(1.0, {"a": float("nan"), "b": 2.0})

    textgym.register("demo/Fragile-v0", task=Fragile, reward=reward)
    for _ in range(2):
        summary = benchmark({"even": Even()}, ["demo/Fragile-v0"], out=tmp_path, seeds=1)
    figures = summary["agents"]["even"]["demo/Fragile-v0"]
    assert (figures["episodes"], figures["failed"]) == (10, 3)
    reasons = " ".join(figures["reasons"])
    for part in ("task: RuntimeError: at a loss", "metrics: ZeroDivisionError", "metrics: TypeError"):
        assert part in reasons
    assert all(row["reward_parts"] == {"b": 2.0} for row in rows_of(tmp_path) if row["status"] == "ok")
    again = rescore(tmp_path, lambda response: 2.0, "two")["agents"]["even"]["demo/Fragile-v0"]
    assert (again["failed"], again["reward"]["value"]) == (3, 2.0)
