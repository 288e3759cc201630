"""Between text and tokens: prompts and messages as ids, ids as text, where a turn ends.

What comes from data and users can never forge markup: it is encoded with ``split_special_tokens=True``, and what it
holds of a chat template's own markup is encoded as ordinary characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Format", "Renderer", "load_tokenizer"]

Format = Literal["chat", "plain"]

PLAIN_LINE = "{role}: {content}"
PLAIN_STOPS = ("\nuser:", "\nassistant:", "\nsystem:")

# A conversation to compare renderings of. The words are unlikely in any template.
ASKED, REPLIED, ANSWERED = "Qwxz asked", "Qwxz replied", "Qwxz answered"
THOUGHT = f"<think>\nQwxz thought\n</think>\n\n{REPLIED}"


def load_tokenizer(tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or the one of this name or path; the built-in model's for None.

    Raises:
        TokenizerError: There is none, or it is something else.
    """
    from transformers import PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is None:
        return _pretrained(_builtin_folder())
    if isinstance(tokenizer, (str, os.PathLike)):
        return _pretrained(os.fspath(tokenizer))
    raise TokenizerError(
        f"tokenizer={tokenizer!r} ({type(tokenizer).__name__}) is neither a name, a path nor a transformers tokenizer."
    )


def _builtin_folder() -> str:
    folder = files("textgym") / "builtin"
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(
            f"this installation has no built-in tokenizer ({folder} is missing); name one: tokenizer='gpt2', a path "
            "or a transformers tokenizer."
        )
    return str(folder)


@cache
def _pretrained(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(
            f"no tokenizer could be loaded from {name!r}: give a folder with a tokenizer, or the name of a model on "
            f"the Hub that can be reached or is cached. transformers says: {error}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers 5 makes one up where there are no files of one
        raise TokenizerError(
            f"{name!r} holds a model without the files of a tokenizer; name the tokenizer that it was trained with."
        )
    return tokenizer


class Renderer:
    """Renders for one tokenizer in one format; holds no state of an episode.

    Args:
        tokenizer: Any transformers tokenizer.
        format: ``"chat"``: by the tokenizer's chat template, the default where it has one. ``"plain"``: a text prompt
            stands verbatim, and messages are ``role: text`` lines.

    Attributes:
        end_tokens: Ids that end the agent's turn: the tokenizer's eos, and what the template puts after a message.
        end_token: The one of them that a reply written as text is ended with, None if there is none.
        message_stops: Strings that end the agent's turn in a conversation whose messages no token ends.

    Raises:
        TokenizerError: The format is ``"chat"`` and the tokenizer has no usable template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: Format | None = None) -> None:
        if format not in (None, "chat", "plain"):
            raise ConfigurationError(
                f"format={format!r}; it is 'chat', 'plain' or None (chat where there is a template)."
            )
        if format == "chat" and not tokenizer.chat_template:
            raise TokenizerError(
                "format='chat' needs a tokenizer with a chat template; use format='plain' for this one."
            )
        self.tokenizer = tokenizer
        self.format: Format = format or ("chat" if tokenizer.chat_template else "plain")
        self.message_stops: tuple[str, ...] = PLAIN_STOPS if self.format == "plain" else ()
        template_end = self._template_end() if self.format == "chat" else None
        ends = [token for token in (template_end, tokenizer.eos_token_id) if token is not None]
        self.end_token: int | None = ends[0] if ends else None
        self.end_tokens = frozenset(ends)

    def prompt_ids(self, sample: Sample) -> list[int]:
        """The ids that an episode about the sample starts with, up to where the agent's reply begins."""
        if self.format == "chat":
            return self._encode_rendered(sample.messages, f"the prompt of sample {sample.id!r}")
        text = sample.prompt if isinstance(sample.prompt, str) else _plain_lines(sample.messages)
        ids = self.tokenizer.encode(text, split_special_tokens=True)
        if ids and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers close every text; a prompt stays open
            ids.pop()
        return ids

    def message_ids(self, text: str, last_token: int, unread: str = "") -> list[int]:
        """The ids that append the environment's message to a stream that stands at the end of the agent's turn.

        Args:
            text: The message.
            last_token: The stream's last id, which may already be the token that ends a message.
            unread: What the agent wrote from its stop string on, which may be how the message begins.
        """
        if self.format == "plain":
            text = "\n" + PLAIN_LINE.format(role="user", content=text) + "\nassistant:"
            return self._encode_text(text.removeprefix(unread))
        conversation = [*_messages(ASKED, REPLIED), {"role": "user", "content": text}]
        return self._encode_rendered(conversation, "a message of the task", last_token, unread)

    def reply_ids(self, text: str) -> list[int]:
        """The ids of a reply that was written as text, with the token that ends it."""
        ids = self._encode_text(text)
        return ids if self.end_token is None else [*ids, self.end_token]

    def conversation_ids(self, episode: Episode) -> list[int]:
        """The ids of an episode's stream so far, as they are where every reply was written as text."""
        ids = self.prompt_ids(episode.sample)
        for turn in episode.turns:
            ids += self.reply_ids(turn.text) if turn.role == "assistant" else self.message_ids(turn.text, ids[-1])
        return ids

    def decode(self, replies: Sequence[np.ndarray]) -> list[str]:
        """The texts of the agent's tokens, ``(length,)`` each; special ones left out.

        Replies of one length go to the tokenizer as one array: of a list it looks at every id before it begins.
        """
        alike: dict[int, list[int]] = {}
        for i, reply in enumerate(replies):
            alike.setdefault(len(reply), []).append(i)
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = [""] * len(replies)
        for places in alike.values():
            batch = np.stack([replies[i] for i in places])
            for i, text in zip(places, self.tokenizer.batch_decode(batch, **options), strict=True):
                texts[i] = text
        return texts

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template would render an earlier turn otherwise once the conversation has gone on.

        Such templates drop an earlier turn's reasoning, for instance. The environment's streams are append-only, so
        there the model sees its earlier turns as it wrote them.
        """
        if self.format == "plain":
            return False
        return any(self._rewrites(reply) for reply in (REPLIED, THOUGHT))

    def _rewrites(self, reply: str) -> bool:
        whole = self._render(_messages(ASKED, reply, ANSWERED))
        head = self._render(_messages(ASKED))
        _, found, tail = whole.rpartition(REPLIED)
        return not found or whole != head + reply + tail

    def _template_end(self) -> int | None:
        """The token that the template puts after an assistant's message; without one, the text that does its work."""
        tail = self._render(_messages(ASKED, REPLIED), generate=False).rpartition(REPLIED)[2].lstrip()
        ids = self._encode_markup(tail)
        if ids and ids[0] in self.tokenizer.added_tokens_decoder:
            return ids[0]
        going_on = self._render(_messages(ASKED, REPLIED, ANSWERED)).partition(REPLIED)[2]
        between = going_on.partition(ANSWERED)[0].strip()
        self.message_stops = (between,) if between else ()
        return None

    def _tail(self, conversation: list[dict[str, str]]) -> str:
        """What the template appends after the assistant's dummy reply."""
        head, found, tail = self._render(conversation).partition(REPLIED)
        if not found:
            raise TokenizerError(
                f"the tokenizer's chat template leaves out earlier replies, so a conversation cannot go on after "
                f"{head!r}; use format='plain' or set another tokenizer.chat_template."
            )
        return tail

    def _encode_rendered(
        self, messages: list[dict[str, str]], what: str, last_token: int | None = None, unread: str = ""
    ) -> list[int]:
        """Ids of the rendered messages, or, after ``last_token``, of what follows the dummy reply among them.

        Markup in a message's text is taken out before the template is applied, and put back, as text, when its place
        among the template's own markup is known.
        """
        taken: list[str] = []
        mark = _unused_character("".join(message["content"] for message in messages))

        def take(match: re.Match[str]) -> str:
            taken.append(match[0])
            return f"{mark}{len(taken) - 1}{mark}"

        clean = [{**message, "content": self._markup.sub(take, message["content"])} for message in messages]
        try:
            text = self._render(clean) if last_token is None else self._tail(clean)
        except TokenizerError as error:
            raise TokenizerError(f"{what} cannot be rendered: {error}") from error
        if last_token is not None:
            text = self._without_beginning(text, last_token, unread)
        pieces = re.split(f"{mark}([0-9]+){mark}", text)
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            ids += self._encode_characters(taken[int(piece)]) if i % 2 else self._encode_markup(piece)
        return ids

    def _without_beginning(self, text: str, last_token: int, unread: str) -> str:
        """The text without what the agent has written of it: the token that ends its message, or a stop string."""
        if last_token in self.end_tokens:
            end = str(self.tokenizer.convert_ids_to_tokens(last_token))
            return text.lstrip().removeprefix(end) if text.lstrip().startswith(end) else text
        return text.removeprefix(unread)

    def _render(self, messages: list[dict[str, str]], generate: bool = True) -> str:
        prefilled = messages[-1]["role"] == "assistant"
        options: dict[str, Any] = {"continue_final_message": True} if prefilled else {"add_generation_prompt": True}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **(options if generate else {})))
        except Exception as error:
            raise TokenizerError(
                f"the tokenizer's chat template refuses messages of roles "
                f"{[message['role'] for message in messages]}: {error}. Use format='plain' or other messages."
            ) from error

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        """Special tokens, and the added tokens that the template makes use of."""
        template = str(self.tokenizer.chat_template)
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = [t.content for t in added if t.content.strip() and (t.special or t.content in template)]
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def _encode_markup(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def _encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _encode_characters(self, token: str) -> list[int]:
        """A token's name as text. In two parts, since an added token that is not special is never split."""
        return self._encode_text(token[:1]) + self._encode_text(token[1:])


def _plain_lines(messages: list[dict[str, str]]) -> str:
    text = "\n".join(PLAIN_LINE.format(**message) for message in messages)
    return text if messages[-1]["role"] == "assistant" else text + "\nassistant:"


def _messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _unused_character(text: str) -> str:
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
