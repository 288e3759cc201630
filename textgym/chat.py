"""Many questions at a time to an OpenAI-compatible endpoint (``/chat/completions``), with retries and time limits."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from textgym.errors import ConfigurationError
from textgym.texts import whole

if TYPE_CHECKING:
    import ssl

    import httpx2

__all__ = ["ChatEndpoint", "ChatFailure", "Completion"]

MAX_PAUSE = 60.0  # seconds before a question is asked again
MAX_ANSWER = 2**20  # bytes
MAX_COUNT = 2**53  # tokens; more is no count
MAX_QUOTE = 200  # characters of somebody else's words in a reason

Result = TypeVar("Result")


@dataclass(frozen=True)
class Completion:
    """What the model behind an endpoint said.

    Args:
        text: Its words.
        finish_reason: Why it ended, such as ``"stop"`` or ``"length"``; None where the endpoint does not say.
        usage: ``"prompt_tokens"`` and ``"completion_tokens"``, 0 where the endpoint does not count.
    """

    text: str
    finish_reason: str | None
    usage: Mapping[str, int]


class ChatFailure(Exception):
    """There is no answer, for this reason.

    Args:
        reason: The reason.
        usage: What the endpoint counted all the same.
    """

    def __init__(self, reason: str, usage: Mapping[str, int] | None = None) -> None:
        super().__init__(reason)
        self.usage: Mapping[str, int] = usage or {}


class _PassingFailure(ChatFailure):
    """Another attempt may succeed, after at least ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class ChatEndpoint:
    """A model behind an endpoint.

    An answer of 429 or 5xx, a broken connection and a time-out are tried again after a pause, which doubles each time
    and is at least what ``Retry-After`` says; if that is more than a minute, the question fails at once.

    Args:
        base_url: Up to and including the version: ``"http://localhost:8000/v1"``.
        api_key: Sent as bearer token; ``"$NAME"`` takes it from that environment variable. It is not shown in reasons.
        concurrency: Questions under way at a time.
        timeout: Seconds for one attempt, from sending the question to the answer's last byte.
        retries: Attempts after the first.
        backoff: Seconds of the first pause; a random half of each pause is left out.

    Attributes:
        url: Where questions go.
        usage: Tokens that the endpoint has counted so far: ``"prompt_tokens"`` and ``"completion_tokens"``.

    Raises:
        ConfigurationError: An argument cannot work, or httpx2 is not installed.
    """

    def __init__(
        self, base_url: str, api_key: str | None, concurrency: int, timeout: float, retries: int, backoff: float
    ) -> None:
        if find_spec("httpx2") is None:
            raise ConfigurationError("asking an endpoint needs httpx2: pip install 'textgym[judge]'.")
        if concurrency < 1 or timeout <= 0 or retries < 0 or backoff < 0:
            raise ConfigurationError(
                f"concurrency={concurrency!r}, timeout={timeout!r}, retries={retries!r}, backoff={backoff!r}: at least "
                "one question at a time, a positive time, and no negative number."
            )
        self.url = _endpoint(base_url)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.usage: Counter[str] = Counter(prompt_tokens=0, completion_tokens=0)
        self._api_key = _resolved_key(api_key)
        self._random = random.Random()

    def ask(
        self, questions: Sequence[bytes], understand: Callable[[bytes, Completion], Result]
    ) -> list[Result | ChatFailure]:
        """Asks all of them, and understands each answer as it comes; works inside a running event loop too.

        Args:
            questions: Bodies of requests, JSON.
            understand: What a completion means to a question; may raise ChatFailure.

        Returns:
            What each one means, or why there is nothing, in order.
        """
        return _run(self._ask_all(questions, understand))

    async def _ask_all(
        self, questions: Sequence[bytes], understand: Callable[[bytes, Completion], Result]
    ) -> list[Result | ChatFailure]:
        import httpx2

        slots = asyncio.Semaphore(self.concurrency)
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"

        async def understood(client: httpx2.AsyncClient, question: bytes) -> Result | ChatFailure:
            try:
                async with slots:
                    completion = await self._completion(client, question)
                return understand(question, completion)
            except ChatFailure as failure:
                return failure

        limits = httpx2.Limits(max_connections=self.concurrency)
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None, verify=_certificates()) as client:
            return await asyncio.gather(*(understood(client, question) for question in questions))

    async def _completion(self, client: httpx2.AsyncClient, question: bytes) -> Completion:
        """The answer, asked for again where the failure may pass."""
        attempt = 0
        while True:
            try:
                return await self._attempt(client, question)
            except _PassingFailure as failure:
                if failure.wait > MAX_PAUSE:
                    raise ChatFailure(f"{failure} (to be tried again after {failure.wait:.0f} s)") from failure
                if attempt == self.retries:
                    raise ChatFailure(f"{failure} (attempt {attempt + 1}, the last)") from failure
                pause = min(self.backoff * 2.0**attempt, MAX_PAUSE) * self._random.uniform(0.5, 1.0)
                await asyncio.sleep(max(pause, failure.wait))
            attempt += 1

    async def _attempt(self, client: httpx2.AsyncClient, question: bytes) -> Completion:
        import httpx2

        try:
            status, wait, answer = await asyncio.wait_for(self._post(client, question), self.timeout)
        except asyncio.TimeoutError as error:
            raise _PassingFailure(f"no answer within {self.timeout:g} s") from error
        except httpx2.TransportError as error:
            raise _PassingFailure(f"{type(error).__name__}: {self.quoted(str(error))}") from error
        except httpx2.RequestError as error:
            raise ChatFailure(f"{type(error).__name__}: {self.quoted(str(error))}") from error
        if status == 429 or status >= 500:
            raise _PassingFailure(f"HTTP {status}: {self.quoted(answer)}", wait)
        if status != 200:
            raise ChatFailure(f"HTTP {status}: {self.quoted(answer)}")
        return self._content(answer)

    async def _post(self, client: httpx2.AsyncClient, question: bytes) -> tuple[int, float, str]:
        """Status, seconds to wait, and text of the answer."""
        answer = b""
        async with client.stream("POST", self.url, content=question) as response:
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > MAX_ANSWER:
                    raise ChatFailure(f"HTTP {response.status_code}: an answer of more than {MAX_ANSWER} bytes")
            wait = _seconds(response.headers.get("Retry-After", ""))
            return response.status_code, wait, answer.decode("utf-8", "replace")

    def _content(self, answer: str) -> Completion:
        usage: dict[str, int] = {}
        try:
            data = json.loads(answer)
            usage = self._count(data.get("usage"))
            (choice, *_) = data["choices"]
            content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ChatFailure(f"the answer is no chat completion: {self.quoted(answer)}", usage) from error
        if not isinstance(content, str):
            raise ChatFailure(f"the model gave no text: {self.quoted(answer)}", usage)
        return Completion(whole(self._without_key(content)), finish_reason, usage)  # JSON may hold half a character

    def _count(self, usage: Any) -> dict[str, int]:
        counted = {name: usage.get(name) if isinstance(usage, dict) else None for name in self.usage}
        numbers = {name: n if type(n) is int and 0 <= n < MAX_COUNT else 0 for name, n in counted.items()}
        self.usage.update(numbers)
        return numbers

    def quoted(self, words: str) -> str:
        """Somebody else's words for a reason: in one line, not too many, and without the key."""
        line = " ".join(self._without_key(words).split())
        return repr(line if len(line) <= MAX_QUOTE else line[:MAX_QUOTE] + "…")

    def _without_key(self, words: str) -> str:
        return words.replace(self._api_key, "***") if self._api_key else words


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result, in a thread of its own where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


@cache
def _certificates() -> ssl.SSLContext:
    """Those of the system; reading them takes longer than many an answer."""
    import httpx2

    return httpx2.create_ssl_context()


def _endpoint(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
    except ValueError as error:
        raise ConfigurationError(f"base_url={base_url!r} is no address: {error}.") from error
    if parts.username or parts.password:
        raise ConfigurationError("base_url holds a user name or a password; give a key as api_key.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"base_url={base_url!r}; give an address like 'http://localhost:8000/v1'.")
    return base_url.rstrip("/") + "/chat/completions"


def _resolved_key(api_key: str | None) -> str | None:
    if api_key is not None and api_key.startswith("$"):
        if not os.environ.get(api_key[1:]):
            raise ConfigurationError(f"api_key={api_key!r}: there is no such environment variable.")
        api_key = os.environ[api_key[1:]]
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise ConfigurationError("the API key is empty, or has blanks or characters that HTTP does not carry.")
    return api_key


def _seconds(retry_after: str) -> float:
    """What a ``Retry-After`` header asks for: a number of seconds or a date (RFC 9110, section 10.2.3); else 0."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", retry_after.strip()):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
