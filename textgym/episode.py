"""What is asked and what happened: no tensors, no tokens, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from textgym.errors import DataError

__all__ = ["Episode", "Message", "Prompt", "Role", "Sample", "StopReason", "Turn"]

Role = Literal["system", "user", "assistant"]
StopReason = Literal["eos", "stop_string", "length", "context", "task"]
Message = Mapping[str, str]
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Sample:
    """One item of a data set.

    Args:
        id: Unique within its data set; data without splits are divided by a hash of it.
        prompt: A text, or chat messages ``{"role": ..., "content": ...}``.
        references: Accepted replies, the preferred one first; may be empty.
        meta: Whatever else the task, the reward or the metrics want to know.

    Raises:
        DataError: The prompt is neither a text nor chat messages, the references are no sequence of texts, or a text
            holds half of a surrogate pair, which no tokenizer takes.
    """

    id: str
    prompt: Prompt
    references: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.references, str) or not all(isinstance(text, str) for text in self.references):
            raise DataError(
                f"sample {self.id!r}: references are a tuple of texts, not {self.references!r}; a single one is "
                "written ('Paris',)."
            )
        if not isinstance(self.prompt, str) and not _are_messages(self.prompt):
            raise DataError(
                f"sample {self.id!r}: a prompt is a text or a list of messages {{'role': ..., 'content': ...}} "
                f"with the roles {', '.join(get_args(Role))}, not {self.prompt!r}."
            )
        for text in (str(self.id), *self.references, *(message["content"] for message in self.messages)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"sample {self.id!r}: {text[error.start : error.end]!r} at place {error.start} of {text[:80]!r} is "
                    "half of a surrogate pair, and no character; correct it, or write U+FFFD in its place."
                ) from error

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages; a text is one message of the user."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [dict(message) for message in self.prompt]


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(map(_is_message, prompt))


def _is_message(message: object) -> bool:
    return (
        isinstance(message, Mapping)
        and message.get("role") in get_args(Role)
        and isinstance(message.get("content"), str)
    )


@dataclass(frozen=True)
class Turn:
    """One message after the prompt: the agent's (``assistant``) or the environment's."""

    role: Role
    text: str


@dataclass
class Episode:
    """One conversation about one sample, append-only.

    Args:
        sample: What was asked.
        turns: The messages after the prompt, in order. For a per-token reward the last one is unfinished.
        stop_reason: How the episode ended, None while it goes on. ``"eos"`` and ``"stop_string"``: the agent ended its
            only turn; ``"task"``: the task ended a conversation of its own accord; ``"length"`` and ``"context"``: the
            budget of new tokens or of the context ran out.
        seed: The seed that reproduces the episode with ``env.reset(seed=seed)``, None where it began without one.
        reward: The sum of the rewards so far; 0.0 for what could not be scored.
        reward_parts: The sum of every leaf reward's own value, by name.
        score_status: ``"ok"``, or why the first failed score failed.
        state: Free for the task, which may note here what it needs in ``respond``.
    """

    sample: Sample
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    seed: int | None = None
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    score_status: str = "ok"
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def response(self) -> str:
        """The text of the agent's last turn, empty before its first."""
        for turn in reversed(self.turns):
            if turn.role == "assistant":
                return turn.text
        return ""

    @property
    def responses(self) -> list[str]:
        """The texts of all of the agent's turns."""
        return [turn.text for turn in self.turns if turn.role == "assistant"]

    @property
    def messages(self) -> list[dict[str, str]]:
        """Prompt and turns as chat messages."""
        return self.sample.messages + [{"role": turn.role, "content": turn.text} for turn in self.turns]

    def record(self) -> dict[str, Any]:
        """The episode as plain, JSON-ready data, comparable with ``==``.

        ``"seed"`` is left out where the episode began without one: Gymnasium's vector environments, which lay infos out
        as arrays, cannot hold None beside a number.
        """
        prompt = self.sample.prompt
        record: dict[str, Any] = {
            "id": self.sample.id,
            "prompt": prompt if isinstance(prompt, str) else self.sample.messages,
            "references": list(self.sample.references),
            "turns": [{"role": turn.role, "text": turn.text} for turn in self.turns],
            "stop_reason": self.stop_reason,
            "reward": self.reward,
            "reward_parts": dict(self.reward_parts),
            "score_status": self.score_status,
        }
        return record if self.seed is None else {**record, "seed": self.seed}
