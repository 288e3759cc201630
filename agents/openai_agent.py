"""A model behind an OpenAI-compatible endpoint as an agent; it plays the turn level."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from textgym.agent import Observation, Reply
from textgym.chat import ChatEndpoint, ChatFailure, Completion
from textgym.episode import StopReason
from textgym.errors import ConfigurationError

__all__ = ["OpenAIAgent"]


class OpenAIAgent:
    """Sends a conversation to ``/chat/completions``, and says what comes back.

    The conversations that it is shown are sent at once, up to ``concurrency`` of them. What fails after all retries
    fails its episode, with the reason. ``Reply.usage`` has the tokens that the endpoint counted and, with ``prices``,
    the ``"cost"``; also where it counted tokens of an answer that is none. A benchmark shows it as many conversations
    at a time as it has under way, and so loses at most as many replies when it is stopped.

    Args:
        base_url: Up to and including the version: ``"http://localhost:8000/v1"``.
        model: Its name at the endpoint.
        api_key: Sent as bearer token; ``"$NAME"`` takes it from that environment variable. It is never shown.
        system: A system message that stands before every conversation.
        prices: Of a million prompt tokens and of a million completion tokens, in any currency; a pair of numbers.
        concurrency, timeout, retries, backoff: As in :class:`textgym.rewards.Judge`.
        request: Further fields of the request, such as ``{"temperature": 0, "max_tokens": 300}``.

    Raises:
        ConfigurationError: An argument cannot work, or httpx2 is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        system: str | None = None,
        prices: tuple[float, float] | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint = ChatEndpoint(base_url, api_key, concurrency, timeout, retries, backoff)
        if prices is not None and not _are_prices(prices):
            raise ConfigurationError(f"prices={prices!r}; a pair of numbers, of prompt and of completion tokens.")
        self.model, self.system, self.prices = model, system, prices
        self.at_a_time = concurrency
        self.request = dict(request or {})

    def __repr__(self) -> str:
        system = "" if self.system is None else f", system={self.system!r}"
        return f"OpenAIAgent({self.endpoint.url!r}, {self.model!r}{system}, request={self.request!r})"

    def act(self, observations: Sequence[Observation]) -> list[Reply]:
        """A reply to each conversation."""
        answers = self.endpoint.ask([self._body(observation) for observation in observations], self._reply)
        return [
            Reply(failure=f"{self.model}: {answer}", usage=self._usage(answer.usage))
            if isinstance(answer, ChatFailure)
            else answer
            for answer in answers
        ]

    def _body(self, observation: Observation) -> bytes:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return json.dumps({"model": self.model, **self.request, "messages": system + observation.messages}).encode()

    def _reply(self, question: bytes, completion: Completion) -> Reply:
        reason: StopReason = "length" if completion.finish_reason == "length" else "eos"
        return Reply(completion.text, reason, self._usage(completion.usage))

    def _usage(self, counted: Mapping[str, int]) -> dict[str, float]:
        usage: dict[str, float] = dict(counted)
        if self.prices is not None and usage:
            amounts = usage["prompt_tokens"], usage["completion_tokens"]
            usage["cost"] = sum(n * price / 1e6 for n, price in zip(amounts, self.prices, strict=True))
        return usage


def _are_prices(prices: Any) -> bool:
    is_pair = isinstance(prices, (list, tuple)) and len(prices) == 2
    return is_pair and all(isinstance(price, (int, float)) and 0 <= price < math.inf for price in prices)
