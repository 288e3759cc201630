"""What the metrics of several tasks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from textgym.episode import Episode, Sample
from textgym.rewards import Abstain, Reward, reward

__all__ = ["LENGTH", "answer_metrics", "mean_scores"]

LENGTH: Reward = reward(lambda response: len(response.split()), name="length")
"""Of a reply, in words."""


def mean_scores(episodes: Sequence[Episode], rewards: Mapping[str, Reward]) -> dict[str, float]:
    """The mean of each reward, by its name here, over the episodes that it can score; left out where there are none."""
    scores = {
        name: [s.value for s in reward.score(episodes) if s.value is not None] for name, reward in rewards.items()
    }
    return {name: fmean(values) for name, values in scores.items() if values}


def answer_metrics(
    episodes: Sequence[Episode], judge: Abstain, groups: Mapping[str, Callable[[Sample], bool]]
) -> dict[str, float]:
    """How questions were answered, over all episodes and over each group of them (``accuracy/known``).

    Args:
        episodes: Of one turn.
        judge: Tells right answers, abstentions and wrong answers.
        groups: Which samples belong to a group, by its name.

    Returns:
        The shares of right replies (``accuracy``), abstentions (``abstention_rate``) and replies that are neither
        (``hallucination_rate``), the mean ``token_f1``, and the share of right replies among those that do not abstain
        (``precision_when_answering``), left out where there are none.
    """
    members = {f"/{name}": [e for e in episodes if belongs(e.sample)] for name, belongs in groups.items()}
    return {
        name + group: value
        for group, part in {"": episodes, **members}.items()
        for name, value in _of(part, judge).items()
    }


def _of(episodes: Sequence[Episode], judge: Abstain) -> dict[str, float]:
    if not episodes:
        return {}
    outcomes = [judge.outcome(episode) for episode in episodes]
    abstained = [judge.abstains(episode.response) for episode in episodes]
    values = {
        "accuracy": fmean(outcome == "correct" for outcome in outcomes),
        "abstention_rate": fmean(abstained),
        "hallucination_rate": fmean(outcome == "wrong" for outcome in outcomes),
        "token_f1": fmean(map(judge.f1, episodes)),
    }
    answers = [outcome for outcome, abstains in zip(outcomes, abstained, strict=True) if not abstains]
    if answers:
        values["precision_when_answering"] = fmean(outcome == "correct" for outcome in answers)
    return values
