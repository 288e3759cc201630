import copy
import gc
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time

import faulty_rewards
import pytest
from scoring import episode, number, scores_of, turn, values

import textgym
from textgym import Score
from textgym.errors import RewardError
from textgym.rewards.parallel import Parallel, Timeout

as_told = faulty_rewards.as_told


@pytest.fixture(scope="module")
def processes():
    """Two workers, for all tests: a process takes seconds to start."""
    with Parallel(as_told, 2, kind="process", timeout=0.5) as reward:
        yield reward
    assert not multiprocessing.active_children()


def test_as_many_threads_as_workers_score_at_the_same_time():
    together = threading.Barrier(4)

    def meet(response):
        together.wait(timeout=30)
        return len(response)

    assert values(Parallel(meet, 4), "a", "bb", "ccc", "dddd") == [1.0, 2.0, 3.0, 4.0]


def test_threads_score_at_the_same_time_and_in_order():
    reward = Parallel(as_told, 4)
    before = time.monotonic()
    assert values(reward, "sleep 0.4", "sleep 0.3", "x", "sleep 0.2", "yy") == [9.0, 9.0, 1.0, 9.0, 2.0]
    assert time.monotonic() - before < 0.8
    assert (reward.name, reward.when) == ("as_told", "episode")
    assert values(reward) == []
    assert scores_of(reward, "abc")[0].parts == {"as_told": 3.0}


def test_never_more_threads_than_workers():
    now, most = 0, 0
    lock = threading.Lock()

    def counting():
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return 0.0

    assert values(Parallel(counting, 3), *"abcdefgh") == [0.0] * 8
    assert most == 3


def test_the_clock_starts_with_the_work():
    """Six episodes, one after another, each within its own limit."""
    assert values(Timeout(as_told, 1.0), *["sleep 0.25"] * 6) == [10.0] * 6


def test_a_late_thread_is_left_behind():
    before = time.monotonic()
    scores = scores_of(Parallel(as_told, 2, timeout=0.2), "hang", "a", "hang", "bb", "hang", "ccc")
    assert [score.value for score in scores] == [None, 1.0, None, 2.0, None, 3.0]
    assert scores[0].status == "as_told: no score within 0.2 s"
    assert time.monotonic() - before < 1.5


def test_timeout_is_for_each_episode():
    reward = Timeout(as_told, 0.1) + 1
    scores = scores_of(reward, "hang", "abc", "raise", "nan")
    assert [score.value for score in scores] == [None, 4.0, None, None]
    assert [score.status for score in scores] == [
        "as_told: no score within 0.1 s",
        "ok",
        "as_told: ValueError: told to",
        "as_told: returned nan, not a finite number",
    ]


def test_a_reward_that_exits_fails_its_episode():
    scores = scores_of(Parallel(as_told, 2), "exit", "a", "b")
    assert [score.value for score in scores] == [None, 1.0, 1.0]
    assert scores[0].status == "as_told: SystemExit: 3"


def test_threads_end_with_their_reward():
    before = set(threading.enumerate())
    reward = Parallel(as_told, 3)
    values(reward, *"abcdef")
    workers = set(threading.enumerate()) - before
    assert workers
    del reward
    gc.collect()
    for worker in workers:
        worker.join(timeout=1)
        assert not worker.is_alive()


def test_asked_at_its_own_moment_only():
    reward = Parallel(turn, 2)
    assert reward.whens == {"turn"}
    assert reward.score_at("episode", [episode("5")]) == [Score(0.0)]
    assert values(reward, "5", "6") == [5.0, 6.0]
    with pytest.raises(RewardError, match="concurrent scoring needs rewards asked at the same moment"):
        Parallel(turn + textgym.reward(number), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parallel(number, 0), "workers=0"),
        (lambda: Parallel(number, 1.5), "workers=1.5"),
        (lambda: Parallel(number, True), "workers=True"),
        (lambda: Parallel(number, 1, kind="fork"), "'thread' or 'process'"),
        (lambda: Parallel(number, 1, timeout=0), "a time limit of 0 seconds"),
        (lambda: Timeout(number, math.nan), "a time limit of nan seconds"),
        (lambda: Timeout(3, 1), "not 3"),
        (
            lambda: Parallel(lambda: 1.0, 1, kind="process"),
            r"the reward 'reward' cannot be sent to a process .*top level of a module, or use kind='thread'",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(RewardError, match=message):
        make()


def run(program):
    """Runs a Python program that can import the faulty rewards. What it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(faulty_rewards.__file__)},
    )
    assert done.stderr == ""
    return done.stdout


def test_the_interpreter_exits_with_a_thread_that_hangs():
    program = """
        from faulty_rewards import as_told
        from textgym import Episode, Sample, Turn
        from textgym.rewards.parallel import Timeout
        print(Timeout(as_told, 0.1).score([Episode(Sample("a", "?"), [Turn("assistant", "hang")])])[0].status)
    """
    assert run(program) == "as_told: no score within 0.1 s\n"


def test_processes_score_in_order(processes):
    assert values(processes, "a", "sleep 0.2", "ccc", "dddd") == [1.0, 9.0, 3.0, 4.0]
    pids = set(values(processes, *["pid"] * 6))
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    scores = scores_of(processes, "raise", "nan", "x")
    assert [score.status for score in scores] == [
        "as_told: ValueError: told to",
        "as_told: returned nan, not a finite number",
        "ok",
    ]
    assert scores[2].parts == {"as_told": 1.0}


def test_workers_that_die_or_hang_are_replaced(processes):
    (old,) = values(processes, "pid")
    scores = scores_of(processes, "die", "a", "hang", "exit", "bb", "hang", "ccc")
    assert [score.value for score in scores] == [None, 1.0, None, None, 2.0, None, 3.0]
    assert [score.status for score in scores if score.value is None] == [
        "as_told: its worker process died (exit code 7)",
        "as_told: no score within 0.5 s",
        "as_told: SystemExit: 3",
        "as_told: no score within 0.5 s",
    ]
    assert len(multiprocessing.active_children()) <= 2  # and it reaps what has ended: there are no zombies
    with pytest.raises(ProcessLookupError):
        os.kill(int(old), 0)
    assert values(processes, "pid", "pid")[0] != old


def test_a_worker_that_died_idle_is_replaced(processes):
    (pid,) = values(processes, "pid")
    (worker,) = [worker for worker in processes._idle if worker._process.pid == pid]
    os.kill(int(pid), 9)
    worker._process.join()
    assert values(processes, "a", "bb", "ccc") == [1.0, 2.0, 3.0]


def test_an_episode_that_cannot_be_sent_fails_alone(processes):
    episodes = [episode("a"), episode("bb", lock=threading.Lock()), episode("ccc")]
    scores = processes.score(episodes)
    assert [score.value for score in scores] == [1.0, None, 3.0]
    assert "as_told: the episode cannot be sent to a process: TypeError" in scores[1].status


def test_a_large_episode_goes_through(processes):
    assert values(processes, "x" * 10**6) == [1e6]


def test_ctrl_c_is_not_for_the_workers(processes, monkeypatch):
    (pid,) = values(processes, "pid")
    os.kill(int(pid), 2)
    assert values(processes, "pid") == [pid]

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("textgym.rewards.parallel.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            values(processes, "hang", "pid")
    assert values(processes, "a") == [1.0]


def test_closing_ends_the_processes():
    reward = Parallel(faulty_rewards.decorated, 1, kind="process")  # pickled by name, like a function
    assert values(reward, "ab1") == [2.0]
    assert reward.name == "letters"
    (worker,) = reward._idle
    reward.close()
    assert worker._process.exitcode == 0
    assert not reward._idle
    (unreadable,) = scores_of(Parallel(faulty_rewards.Unreadable(), 1, kind="process"), "x")
    assert re.match("unreadable: its worker process cannot read the reward: ValueError", unreadable.status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_program_has_workers_of_its_own_and_none_is_left():
    """Both would read each other's scores. At the end one worker hangs, and the interpreter exits."""
    program = """
        import os, signal
        from faulty_rewards import as_told
        from textgym import Episode, Sample, Turn
        from textgym.rewards.parallel import Parallel

        def score(reward, response):
            return reward.score([Episode(Sample("a", "?"), [Turn("assistant", response)])])[0]

        processes = Parallel(as_told, 1, kind="process")
        before = score(processes, "pid").value
        if os.fork() == 0:
            assert score(processes, "pid").value != before
            processes.close()
            os._exit(0)
        _, status = os.wait()
        assert score(processes, "pid").value == before
        try:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            score(processes, "hang")
        except KeyboardInterrupt:
            pass
        print(status, int(before), int(score(processes, "pid").value))
    """
    status, *pids = map(int, run(program).split())
    assert status == 0
    assert len(set(pids)) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_parallel_rewards_are_made_anew_from_a_pickle():
    twin = pickle.loads(pickle.dumps(Timeout(faulty_rewards.length, 2.0) + Parallel(faulty_rewards.decorated, 3)))
    assert values(twin, "ab1") == [5.0]
    timeout, parallel = twin.children
    assert (type(timeout), timeout.timeout, parallel.workers) == (Timeout, 2.0, 3)
    assert copy.deepcopy(parallel) is parallel
