"""Scores of single replies, whatever was asked."""

from __future__ import annotations

import textgym
from textgym import Episode, Sample, Turn


def episode(response, **meta):
    return Episode(Sample("a", "Say something.", (), meta), [Turn("assistant", response)])


def scores_of(reward, *responses):
    return reward.score_at(reward.when, [episode(response) for response in responses])


def values(reward, *responses):
    return [score.value for score in scores_of(reward, *responses)]


def number(response):
    return float(response)


turn = textgym.reward(number, name="turn", when="turn")
