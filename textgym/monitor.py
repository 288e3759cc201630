"""Who is told how long work goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from textgym.episode import Episode

if TYPE_CHECKING:
    from textgym.evaluation import Estimate

__all__ = ["EpisodeCounter", "Monitor"]


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
