"""The token streams of conversations that go on side by side: how they grow, end and are scored.

``TokenEnv`` is one row of this and ``TokenVectorEnv`` several, so the two cannot disagree.

Shapes: n is the number of rows, C the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded

from textgym.conversation import add_scores, ask, close_turn, outcome
from textgym.episode import Episode, StopReason, Turn
from textgym.rewards import Score
from textgym.setting import TokenSetting, stop_position

__all__ = ["StepResult", "Streams"]


class StepResult(NamedTuple):
    """What one token in every row led to."""

    rewards: np.ndarray  # (n,) float64
    ended: np.ndarray  # (n,) bool: the episode is over
    infos: dict[int, dict[str, Any]]  # by row, ascending, of the rows that have something to say


class Ending(NamedTuple):
    """How a turn of the agent ended."""

    reason: StopReason
    text: str
    unread: str = ""  # what the agent wrote from the stop string on


class Streams:
    """n token streams in preallocated arrays, each append-only from :meth:`begin` to the episode's end.

    Attributes:
        input_ids: ``(n, C)`` int64, 0 beyond the stream.
        attention_mask: ``(n, C)`` int8, 1 on the stream.
        agent_mask: ``(n, C)`` int8, 1 on the agent's tokens.
        lengths: ``(n,)`` int64.
        episodes: What happens in each row; None before its first episode.
    """

    def __init__(self, setting: TokenSetting, n: int) -> None:
        self.setting = setting
        self.input_ids = np.zeros((n, setting.max_context), np.int64)
        self.attention_mask = np.zeros((n, setting.max_context), np.int8)
        self.agent_mask = np.zeros((n, setting.max_context), np.int8)
        self.lengths = np.zeros(n, np.int64)
        self.episodes: list[Episode | None] = [None] * n
        self._turn_starts = np.zeros(n, np.int64)
        self._turn_limits = np.zeros(n, np.int64)  # the length at which a turn ends in any case
        self._rngs: list[np.random.Generator | None] = [None] * n
        self._live = np.zeros(n, dtype=bool)
        self._rows = np.arange(n)
        self._firsts = self._rows * setting.max_context  # where each row begins in a flat array

    @property
    def observation(self) -> dict[str, np.ndarray]:
        """Views of the three arrays, ``(n, C)`` each."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "agent_mask": self.agent_mask}

    def observations_of(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Copies of these rows, ``(C,)`` each."""
        if not rows:
            return []
        copies = {name: array[rows] for name, array in self.observation.items()}
        return [{name: array[i] for name, array in copies.items()} for i in range(len(rows))]

    def begin(
        self, row: int, rng: np.random.Generator, seed: int | None = None, index: int | None = None
    ) -> dict[str, Any]:
        """Starts an episode in a row, about the sample of this index or a random one. Its ``info``."""
        index = self.setting.draw(rng, index)
        prompt = self.setting.prompt_ids(index)
        sample = self.setting.samples[index]
        for array in (self.input_ids, self.attention_mask, self.agent_mask):
            array[row] = 0
        self._append(row, 0, prompt)
        self.episodes[row] = Episode(sample, seed=seed)
        self._rngs[row] = rng
        self._live[row] = True
        return {"sample_id": sample.id}

    def advance(self, tokens: np.ndarray) -> StepResult:
        """Appends the agent's token in every row, and all that follows from it.

        Args:
            tokens: ``(n,)`` whole numbers.

        Raises:
            InvalidAction: One of them is no token id.
            ResetNeeded: A row has no episode under way.
        """
        if np.count_nonzero(self._live) < len(self._live):
            raise ResetNeeded("the episode is over, or has not begun: call reset before step.")
        tokens = self._checked(tokens)
        self._write(tokens)
        endings = self._endings(tokens)
        rewards = np.zeros(len(tokens))
        ended = np.zeros(len(tokens), dtype=bool)
        scores: dict[int, list[Score]] = {}
        if "token" in self.setting.whens:
            self._draft(endings)
            ask(self.setting.reward, "token", self._rows.tolist(), self.episodes, scores)
        for row, ending in endings.items():
            ended[row] = self._close(row, ending)
        if endings:
            self._score(endings, ended, scores)
            self._live &= ~ended
        return StepResult(rewards, ended, self._settle(endings, scores, rewards))

    def action_mask(self, row: int) -> np.ndarray:
        """Which tokens the agent may choose in a row, ``(len(tokenizer),)`` bool."""
        return self.setting.action_mask(self.episodes[row])

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.dtype.kind not in "iu" or tokens.shape != self._rows.shape:
            raise InvalidAction(f"expected {len(self._rows)} token id(s), not {tokens!r}.")
        tokens = tokens.astype(np.int64, copy=False)
        if tokens.view(np.uint64).max() >= self.setting.vocabulary_size:  # where a negative one is a large one
            raise InvalidAction(f"token ids are 0 to {self.setting.vocabulary_size - 1}; got {tokens.tolist()}.")
        return tokens

    def _write(self, tokens: np.ndarray) -> None:
        places = self._firsts + self.lengths
        self.input_ids.reshape(-1)[places] = tokens
        self.attention_mask.reshape(-1)[places] = 1
        self.agent_mask.reshape(-1)[places] = 1
        self.lengths += 1

    def _append(self, row: int, start: int, ids: np.ndarray) -> None:
        """Appends the environment's tokens to a stream of length ``start``; the agent's turn begins after them."""
        end = start + len(ids)
        self.input_ids[row, start:end] = ids
        self.attention_mask[row, start:end] = 1
        self.lengths[row] = self._turn_starts[row] = end
        self._turn_limits[row] = min(end + self.setting.max_new_tokens, self.setting.max_context)

    def _endings(self, tokens: np.ndarray) -> dict[int, Ending]:
        """The rows whose turn ends with these tokens, ascending."""
        setting = self.setting
        by_token = setting.is_end_token[tokens]
        suspects = by_token | (self.lengths >= self._turn_limits)
        if setting.stop:
            suspects |= setting.may_complete_stop(tokens)
        (rows,) = suspects.nonzero()
        if not len(rows):
            return {}
        texts = self._turn_texts(rows, self.lengths[rows] - by_token[rows])
        found = {row: self._ending(row, bool(by_token[row]), text) for row, text in texts.items()}
        return {row: ending for row, ending in found.items() if ending is not None}

    def _ending(self, row: int, by_token: bool, text: str) -> Ending | None:
        if by_token:
            return Ending("eos", text)
        stop = stop_position(text, self.setting.stop)
        if stop is not None:
            return Ending("stop_string", text[:stop], text[stop:])
        if self.lengths[row] - self._turn_starts[row] >= self.setting.max_new_tokens:
            return Ending("length", text)
        return Ending("context", text) if self.lengths[row] >= self.setting.max_context else None

    def _turn_texts(self, rows: np.ndarray, ends: np.ndarray) -> dict[int, str]:
        """By row, ascending, what the agent has written in its turn up to these places."""
        starts = self._turn_starts[rows].tolist()
        spans = zip(rows.tolist(), starts, ends.tolist(), strict=True)
        replies = {row: self.input_ids[row, start:end] for row, start, end in spans}
        return dict(zip(replies, self.setting.renderer.decode(list(replies.values())), strict=True))

    def _draft(self, endings: dict[int, Ending]) -> None:
        """Shows the rewards the turns as they stand, unfinished ones as well."""
        texts = self._turn_texts(self._rows, self.lengths)
        for row, episode in enumerate(self.episodes):
            if episode is None:
                continue
            if self.lengths[row] - self._turn_starts[row] > 1:
                episode.turns.pop()
            episode.turns.append(Turn("assistant", endings[row].text if row in endings else texts[row]))

    def _close(self, row: int, ending: Ending) -> bool:
        """Ends the agent's turn and lets the task answer. Whether the episode is over."""
        episode, rng, setting = self.episodes[row], self._rngs[row], self.setting
        if episode is None or rng is None:
            raise ResetNeeded(f"row {row} has no episode.")
        if "token" in setting.whens:
            episode.turns.pop()
        answer = close_turn(setting, episode, ending.text, ending.reason, rng)
        if answer is None:
            return True
        length = int(self.lengths[row])
        ids = setting.renderer.message_ids(answer, int(self.input_ids[row, length - 1]), ending.unread)
        if length + len(ids) >= setting.max_context:  # no room for a reply
            episode.stop_reason = "context"
            return True
        episode.turns.append(Turn("user", answer))
        self._append(row, length, np.asarray(ids, dtype=np.int64))
        return False

    def _score(self, endings: dict[int, Ending], ended: np.ndarray, scores: dict[int, list[Score]]) -> None:
        """Asks the rewards that are due at a turn's and at an episode's end, each once for all rows."""
        if "turn" in self.setting.whens:
            ask(self.setting.reward, "turn", list(endings), self.episodes, scores)
        if "episode" in self.setting.whens:
            ask(self.setting.reward, "episode", np.flatnonzero(ended).tolist(), self.episodes, scores)

    def _settle(
        self, endings: dict[int, Ending], scores: dict[int, list[Score]], rewards: np.ndarray
    ) -> dict[int, dict[str, Any]]:
        """Fills in the rewards; the infos of the rows whose turn ended or whose score failed."""
        infos: dict[int, dict[str, Any]] = {}
        for row in sorted(endings.keys() | scores.keys()):
            episode = self.episodes[row]
            if episode is None:
                continue
            rewards[row], status = add_scores(episode, scores.get(row, ()))
            if row in endings:
                infos[row] = outcome(self.setting, episode, status)
            elif status != "ok":
                infos[row] = {"score_status": status}
        return infos
