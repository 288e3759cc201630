"""Who is told how work goes, and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from textgym.episode import Episode

if TYPE_CHECKING:
    from textgym.evaluation import Estimate

__all__ = ["EpisodeCounter", "Monitor", "deferred_interrupt"]


class Monitor:
    """Is told how a run goes; this one keeps it to itself."""

    def stage(self, name: str, what: str) -> None:
        """A part of the run begins."""

    def progress(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """So much of the part is done, and the figures that matter."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def result(self, name: str, summary: Mapping[str, Estimate]) -> None:
        """A stage has been evaluated."""


class EpisodeCounter:
    """Tells a monitor how many episodes have ended, and their mean reward."""

    def __init__(self, monitor: Monitor, total: int) -> None:
        self.monitor, self.total = monitor, total
        self.done = self.scored = 0
        self.reward = 0.0

    def __call__(self, episode: Episode) -> None:
        """Counts one."""
        self.done += 1
        if episode.score_status == "ok":
            self.scored += 1
            self.reward += episode.reward
        figures = {"reward": self.reward / self.scored} if self.scored else {}
        self.monitor.progress(self.done, self.total, figures)


@contextmanager
def deferred_interrupt(monitor: Monitor) -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted, and the second one interrupts. Gives what tells whether one was."""
    wanted = False

    def note(signum: int, frame: Any) -> None:
        nonlocal wanted
        if wanted:
            raise KeyboardInterrupt
        wanted = True
        monitor.note("stopping after this iteration; Ctrl-C again stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: wanted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: wanted
    finally:
        signal.signal(signal.SIGINT, before)
