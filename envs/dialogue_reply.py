"""Dialogue replies: the next reply in a conversation.

The built-in contexts are cut from conversations between human agents and the simulated user of
:mod:`~textgym.envs.user_simulator`. Data sets of conversations give a sample for every reply. All samples of a
conversation are in the same split; in data sets without splits, so are those of conversations that begin alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from textgym.data import BuiltinTask, Layout, Row, divided, split_of
from textgym.envs.dialogue import CLERKS, builtin_goals
from textgym.envs.invention import Chance
from textgym.envs.recipe import COMMON
from textgym.envs.report import LENGTH, mean_scores
from textgym.envs.user_simulator import Goal
from textgym.episode import Episode, Sample
from textgym.rewards.lexical import ChrF, TokenF1

__all__ = ["DialogueReply"]

N_CONVERSATIONS = 2_500
SEED = (2026, 3, 8)
CONTEXT = 5
"""Messages before a reply, at most; an odd number, so that where speakers take turns the other one begins."""

METRICS = {"token_f1": TokenF1(), "chrf": ChrF(), "length": LENGTH}


def _replies(texts: Sequence[str], speakers: Sequence[Hashable], speaker: Hashable = None, **columns: Any) -> list[Row]:
    """A row for every text after the first that is not blank, and by ``speaker`` where given; he is the assistant."""
    return [
        {
            "prompt": [
                {"role": "assistant" if speakers[before] == speakers[place] else "user", "content": texts[before]}
                for before in range(max(0, place - CONTEXT), place)
            ],
            "references": [text],
            "split": split_of(texts[0]),
            **columns,
        }
        for place, text in enumerate(texts)
        if place and text.strip() and speaker in (None, speakers[place])
    ]


def _sgd_rows(row: Row) -> list[Row]:
    """Turns as the project's files have them, or as the hub: a list of texts and one of speakers, as numbers."""
    turns = row["turns"]
    if isinstance(turns, Mapping):
        texts, speakers = turns["utterance"], [("USER", "SYSTEM")[speaker] for speaker in turns["speaker"]]
    else:
        texts = [turn["utterance" if "utterance" in turn else "text"] for turn in turns]
        speakers = [turn["speaker"] for turn in turns]
    rows = _replies(texts, speakers, "SYSTEM", services=row["services"])
    return [{**part, "id": f"{row['dialogue_id']}/{number}"} for number, part in enumerate(rows)]


def _chatterbot_rows(row: Row) -> list[Row]:
    return _replies(row["turns"], _taking_turns(row["turns"]), topic=row["topic"])


def _daily_dialog_rows(row: Row) -> list[Row]:
    return _replies(row["dialog"], _taking_turns(row["dialog"]))


def _taking_turns(texts: Sequence[str]) -> list[int]:
    return [place % 2 for place in range(len(texts))]


class DialogueReply(BuiltinTask):
    """The next reply in a conversation, to be like the one that was given.

    The built-in demonstrations are what human agents said, of whom some ask for one thing at a time or for what they
    were told; the references are what an attentive agent would have said there.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`.
        columns: Likewise.
    """

    reward = 0.5 * TokenF1() + 0.5 * ChrF()
    stop = ("\n",)
    max_new_tokens = 48
    recipe = MappingProxyType({**COMMON, "total_timesteps": 30_000})
    headline_metrics = ("token_f1", "chrf")
    layouts = MappingProxyType(
        {
            "sgd": Layout("google-research-datasets/schema_guided_dstc8", "dialogues", rows=_sgd_rows),
            "chatterbot": Layout("gunthercox/chatterbot-corpus", rows=_chatterbot_rows),
            "daily_dialog": Layout("DeepPavlov/daily_dialog", rows=_daily_dialog_rows),
        }
    )

    @classmethod
    def builtin(cls) -> Mapping[str, Sequence[Sample]]:
        """The built-in contexts, divided by conversation."""
        return _builtin_splits()

    def demonstration(self, sample: Sample) -> list[str] | None:
        """What somebody said, see the class."""
        said = [sample.meta.get("demonstration"), *sample.references]
        return next(([f" {reply.strip()}"] for reply in said if reply), None)

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means of token F1 and chrF, and of the reply's ``length`` in words."""
        return mean_scores(episodes, METRICS)


@cache
def _builtin_splits() -> Mapping[str, Sequence[Sample]]:
    """Divided by conversation; no context comes twice."""
    chance = Chance(SEED)
    samples: dict[tuple[str, ...], Sample] = {}
    for goal in builtin_goals()[:N_CONVERSATIONS]:
        for sample in _contexts(goal, chance):
            samples.setdefault(tuple(message["content"] for message in sample.messages), sample)
    return divided(samples.values(), lambda sample: sample.id.rpartition("/")[0])


def _contexts(goal: Sample, chance: Chance) -> Iterator[Sample]:
    """A sample for each turn of a human agent."""
    messages = goal.messages
    conversation = CLERKS[goal.meta["clerk"]].conversation(Goal.of(goal))
    for number, (user, said) in enumerate(conversation):
        if number:
            messages.append({"role": "user", "content": user.reply.words(user.domain, chance.rng)})
        best = CLERKS["brisk"].reply(user, user.told)
        yield Sample(f"{goal.id}/{number}", tuple(messages), (best.strip(),), {"demonstration": said.strip()})
        messages.append({"role": "assistant", "content": said.strip()})
