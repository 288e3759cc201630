"""Rewards scored in workers: several episodes at the same time, each within a time limit."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from textgym.episode import Episode
from textgym.errors import RewardError
from textgym.rewards.core import Reward, RewardLike, Score, When, as_reward, one_moment

__all__ = ["Parallel", "Timeout"]

Kind = Literal["thread", "process"]
SelfParallel = TypeVar("SelfParallel", bound="Parallel")

START_LIMIT = 300.0
"""Seconds that a worker has to begin with an episode: a process imports and reads its reward before it does."""
CLOSE_LIMIT = 2.0
"""Seconds that an idle worker process has to end by itself."""


class Parallel(Reward):
    """Scores the episodes of a batch at the same time, each by itself, in workers; the scores come in order.

    For a reward that waits (for a service, a sandbox) or computes long. One that gains from batches, such as a model on
    a GPU, loses by it.

    ``kind="thread"``: the reward is shared by the workers, and must bear that. A thread cannot be killed: one that is
    late is left behind, goes on in the background and may still do what it does, and another one takes its place. It
    does not keep the interpreter from exiting.

    ``kind="process"``: each worker is a fresh interpreter (spawned, not forked) with a copy of the reward as it was
    when this object was made. What the reward notes in itself or in an episode stays in the worker. A worker that is
    late is killed and one that dies is replaced, and only its episode fails. As ever with spawned processes, a script
    needs ``if __name__ == "__main__":`` around what it does.

    Workers start when they are needed, and stay until :meth:`close`, the end of a ``with`` block, or the end of this
    object or of the program; scoring after ``close`` starts new ones.

    Args:
        reward: Who scores. It is asked about one episode at a time.
        workers: How many episodes at most are scored at the same time.
        kind: ``"thread"`` or ``"process"``.
        timeout: Seconds for an episode, counted from the moment that a worker begins with it, not from when it is
            queued; a late score is a failed one. None: no limit.

    Raises:
        RewardError: An argument is wrong; the reward is asked at several moments; or ``kind="process"`` and the reward
            cannot be pickled.
    """

    def __init__(self, reward: RewardLike, workers: int, kind: Kind = "thread", timeout: float | None = None) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise RewardError(f"workers={workers!r}; it is a whole number, at least 1.")
        if kind not in get_args(Kind):
            raise RewardError(f"kind={kind!r}; it is 'thread' or 'process'.")
        if timeout is not None and not timeout > 0:
            raise RewardError(f"a time limit of {timeout} seconds; it is above 0.")
        self.reward, self.workers, self.kind, self.timeout = as_reward(reward), workers, kind, timeout
        self.name = self.reward.name
        self.when = one_moment("concurrent scoring", [self.reward])
        ask = partial(_ask, self.reward, self.when)
        self._start: Callable[[], _Worker] = (
            partial(_Thread, ask) if kind == "thread" else partial(_Process, self.name, _pickled(ask, self.name))
        )
        self._idle: list[_Worker] = []
        weakref.finalize(self, _close_all, self._idle)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The reward's scores; a late one, and one whose worker died, is a failed one that says so."""
        waiting = deque(enumerate(episodes))
        jobs: list[_Job] = []
        scores: dict[int, Score] = {}
        try:
            while waiting or jobs:
                while waiting and len(jobs) < self.workers:
                    worker = self._worker()
                    place, episode = waiting.popleft()
                    jobs.append(_Job(worker, place, episode, self.timeout))
                for job in _finished(jobs):
                    jobs.remove(job)
                    scores[job.place] = job.score or job.failed(self.name)
                    if job.worker.is_alive():
                        self._idle.append(job.worker)
        finally:
            for job in jobs:  # there are some only where an exception, such as Ctrl-C, passes through
                job.worker.kill()
        return [scores[place] for place in range(len(episodes))]

    def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive():
                return worker
        return self._start()

    def close(self) -> None:
        """Ends the workers."""
        _close_all(self._idle)

    def __enter__(self: SelfParallel) -> SelfParallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Parallel, (self.reward, self.workers, self.kind, self.timeout)


class Timeout(Parallel):
    """Gives a reward so many seconds for each episode; a late score is a failed one.

    The episodes are scored one after another, each in a thread. A thread cannot be killed: a late one is left behind
    and goes on in the background. ``Parallel(reward, 1, kind="process", timeout=seconds)`` kills.

    Args:
        reward: Who scores. It is asked about one episode at a time.
        seconds: The limit.

    Raises:
        RewardError: The limit is not positive, or the reward is asked at several moments.
    """

    def __init__(self, reward: RewardLike, seconds: float) -> None:
        super().__init__(reward, 1, "thread", seconds)
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return Timeout, (self.reward, self.timeout)


def _ask(reward: Reward, when: When, episode: Episode) -> Score:
    try:
        return reward.score_at(when, [episode])[0]
    except SystemExit as error:  # which would end the worker without a word
        return Score(None, status=f"{reward.name}: SystemExit: {error}")


def _pickled(ask: Callable[[Episode], Score], name: str) -> bytes:
    try:
        return pickle.dumps(ask)
    except Exception as error:  # pickling calls whatever the reward's objects define
        raise RewardError(
            f"the reward {name!r} cannot be sent to a process ({error}); define its functions and classes at the top "
            "level of a module, or use kind='thread'."
        ) from error


def _close_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().close()


class _Job:
    """An episode in the hands of a worker, who says None when it begins, which sets the clock going; then the score."""

    def __init__(self, worker: _Worker, place: int, episode: Episode, limit: float | None) -> None:
        self.worker, self.place, self.limit = worker, place, limit
        self.score: Score | None = None
        self.failure = ""
        self.has_begun = False
        self.deadline = time.monotonic() + START_LIMIT
        try:
            worker.give(episode)
        except Exception as error:  # noqa: BLE001 (pickling calls whatever is in the episode; only this one fails)
            self.failure = f"the episode cannot be sent to a process: {type(error).__name__}: {error}"

    @property
    def is_over(self) -> bool:
        return self.score is not None or bool(self.failure)

    def failed(self, name: str) -> Score:
        return Score(None, status=f"{name}: {self.failure}")

    def listen(self) -> None:
        try:
            self.score = self.worker.connection.recv()
        except (EOFError, OSError):
            self.failure = self.worker.last_words()
            if not self.has_begun:
                self.failure += ", before it began; a script that uses processes needs `if __name__ == '__main__':`"
        if not self.is_over:
            self.has_begun = True
            self.deadline = math.inf if self.limit is None else time.monotonic() + self.limit

    def give_up(self) -> None:
        self.worker.kill()
        self.failure = (
            f"no score within {self.limit:g} s" if self.has_begun else f"no worker began within {START_LIMIT:g} s"
        )


def _finished(jobs: Sequence[_Job]) -> list[_Job]:
    """The jobs that are over, after waiting until a worker says something or is late."""
    if not any(job.is_over for job in jobs):
        seconds = max(0.0, min(job.deadline for job in jobs) - time.monotonic())
        ready = wait([job.worker.connection for job in jobs], None if math.isinf(seconds) else seconds)
        for job in jobs:
            if job.worker.connection in ready:
                job.listen()
            elif time.monotonic() >= job.deadline:
                job.give_up()
    return [job for job in jobs if job.is_over]


class _Thread:
    """A thread that scores one episode after another."""

    def __init__(self, ask: Callable[[Episode], Score]) -> None:
        self.connection, answers = multiprocessing.Pipe(duplex=False)
        self._inbox: SimpleQueue[Episode | None] = SimpleQueue()
        # a daemon: the threads of concurrent.futures are waited for when the interpreter exits, hanging or not
        self._thread = threading.Thread(target=_work, args=(ask, self._inbox.get, answers), daemon=True)
        self._thread.start()

    def give(self, episode: Episode) -> None:
        self._inbox.put(episode)

    def is_alive(self) -> bool:
        return not self.connection.closed and self._thread.is_alive()

    def last_words(self) -> str:
        self.kill()
        return "the reward ended its worker thread"

    def kill(self) -> None:
        """Leaves it behind: it ends when the reward returns."""
        self._inbox.put(None)
        self.connection.close()

    close = kill


class _Process:
    """A process that scores one episode after another. A forked copy of the program that started it lets it be."""

    def __init__(self, name: str, pickled: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, pickled, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._owner = os.getpid()

    def give(self, episode: Episode) -> None:
        pickled = pickle.dumps(episode)
        with suppress(OSError):  # it has died, as listening to it will tell
            self.connection.send_bytes(pickled)

    def is_alive(self) -> bool:
        return self._owner == os.getpid() and not self.connection.closed and self._process.is_alive()

    def last_words(self) -> str:
        self._process.join(CLOSE_LIMIT)
        code = self._process.exitcode
        self.kill()
        return f"its worker process died (exit code {code})"

    def kill(self) -> None:
        self.connection.close()
        if self._owner == os.getpid():
            self._process.kill()
            self._process.join()

    def close(self) -> None:
        self.connection.close()
        if self._owner == os.getpid():
            self._process.join(CLOSE_LIMIT)
        self.kill()


_Worker = _Thread | _Process


def _work(ask: Callable[[Episode], Score], take: Callable[[], Episode | None], answers: Connection) -> None:
    with answers, suppress(EOFError, OSError):  # whoever asked has gone
        for episode in iter(take, None):
            answers.send(None)
            answers.send(ask(episode))


def _serve(name: str, pickled: bytes, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started this one
    _work(_unpickled(name, pickled), connection.recv, connection)


def _unpickled(name: str, pickled: bytes) -> Callable[[Episode], Score]:
    try:
        return pickle.loads(pickled)
    except Exception as error:  # noqa: BLE001 (unpickling calls whatever the reward's objects define)
        status = f"{name}: its worker process cannot read the reward: {type(error).__name__}: {error}"
        return lambda episode: Score(None, status=status)
