"""Neural rewards: a sequence classifier's score, the similarity of embeddings, a language model's fluency.

Shapes: B rows of a batch, T tokens of its longest row, C classes, D the encoder's width, V the tokenizer's length.
"""

from __future__ import annotations

import math
import os
import re
import string
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from textgym.episode import Episode, Sample
from textgym.errors import ConfigurationError, ModelError, TokenizerError
from textgym.rendering import PLAIN_LINE, Renderer, load_tokenizer
from textgym.rewards.core import Reward, Score
from textgym.rewards.loading import load_pretrained

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    ModelLike = str | os.PathLike[str] | PreTrainedModel
    TokenizerLike = str | os.PathLike[str] | PreTrainedTokenizerBase

__all__ = ["EmbeddingSimilarity", "Fluency", "RewardModel", "check_template", "prompt_and_response"]

Activation = Literal["logit", "log_probability", "probability"]
Pooling = Literal["mean", "cls", "last"]
Template = str | Callable[[str, str], str]
Key = TypeVar("Key")
Value = TypeVar("Value")


class RewardModel(Reward):
    """The score that a sequence-classification model gives to a response and what it answers.

    Everything up to the agent's last turn is scored as one text. A normalised or clipped score is a composition, such
    as ``ZScore(RewardModel(...))``. What a text spells of the tokenizer's special tokens is broken up by a blank, so
    that no reply can forge markup.

    A text longer than ``max_length`` loses the beginning of what precedes the response, message by message. A response
    that is too long by itself is a failed score, unless ``truncate``.

    Args:
        model: A name or path (weights are loaded from safetensors, or from pickles with ``weights_only``; no code of
            the repository is run), or a PreTrainedModel, which is used in place, where it is and in its own precision.
            A folder with an adapter gives the base model that it names, with that adapter.
        tokenizer: The model's, by default the one of its name or path. It need not be the agent's.
        template: A format string with the fields ``{prompt}`` and ``{response}``, or a function of the two texts. By
            default, the conversation by the tokenizer's chat template; where it has none, the prompt and the response
            as they stand. For a template, several messages are one prompt of ``role: text`` lines.
        label: The class whose score is the reward: its name in the model's configuration, or its index. It may be left
            out where there is only one.
        activation: ``"logit"``: the model's output as it is. ``"log_probability"``, at most 0, and ``"probability"``,
            from 0 to 1: by a softmax over the classes, or by a sigmoid where there is one class or the classes do not
            exclude each other.
        batch_size: Texts in one forward pass; those of similar length go together.
        device: Where a model that is loaded goes; ``"auto"``: to the GPU if there is one.
        dtype: The precision in which a model is loaded, such as ``"bfloat16"``; float32 where None.
        max_length: Tokens of a text, by default as many as model and tokenizer take.
        truncate: Whether a response that is too long by itself is scored by its beginning.

    Raises:
        ModelError: There is no such model, or its classification head is not trained.
        TokenizerError: There is no such tokenizer, or it has more entries than the model.
        ConfigurationError: An argument cannot work, for instance no ``label`` where there are several classes.
    """

    def __init__(
        self,
        model: ModelLike,
        tokenizer: TokenizerLike | None = None,
        template: Template | None = None,
        label: str | int | None = None,
        activation: Activation = "logit",
        batch_size: int = 32,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        _check_choice("activation", activation, get_args(Activation))
        self.model, self.tokenizer = _load("AutoModelForSequenceClassification", model, tokenizer, device, dtype)
        self.pad_token = _pad_token(self.model)
        self.label = _label_index(self.model.config, label)
        self.activation = activation
        self.batch_size = _positive("batch_size", batch_size)
        self.max_length = _max_length(self.model, self.tokenizer, max_length)
        self.truncate = truncate
        self.template = _checked_template(template, self.tokenizer)
        self._markup = _markup(self.tokenizer)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The class's score of each text; a text that cannot be read fails alone."""
        rows = [self.ids(episode) for episode in episodes]
        readable = {i: row for i, row in enumerate(rows) if isinstance(row, list)}
        values = _in_batches(readable, self.batch_size, self._values)
        return [row if isinstance(row, Score) else Score(values[i]) for i, row in enumerate(rows)]

    def ids(self, episode: Episode) -> list[int] | Score:
        """The text's ids, shortened where needed; the failed score of a text that cannot be shortened enough."""
        if self.template is None:
            messages, response = _messages_and_response(episode)
        else:
            prompt, response = prompt_and_response(episode)
            messages = [{"role": "user", "content": prompt}]
        context = [{**message, "content": self._harmless(message["content"])} for message in messages]
        response = self._harmless(response)
        prompt_length = sum(len(message["content"]) for message in context)

        def ids_without(cut: int) -> list[int]:
            kept = response[: len(response) - max(0, cut - prompt_length)]
            return self._encode(_without_beginning(context, cut), kept)

        limit = prompt_length + (len(response) if self.truncate else 0)
        ids = _fitted(ids_without, limit, self.max_length)
        if ids is None:
            return _failed(self, f"the response takes more than max_length={self.max_length} tokens.")
        return ids or _failed(self, "prompt and response are empty.")

    def _encode(self, context: list[dict[str, str]], response: str) -> list[int]:
        if isinstance(self.template, str):
            return self.tokenizer.encode(self.template.format(prompt=context[0]["content"], response=response))
        if self.template is not None:
            return self.tokenizer.encode(self.template(context[0]["content"], response))
        messages = [*context, {"role": "assistant", "content": response}]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        return self.tokenizer.encode(text, add_special_tokens=False)  # the template writes them itself

    def _harmless(self, text: str) -> str:
        return self._markup.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)

    def _values(self, rows: list[list[int]]) -> list[float]:
        from torch.nn.functional import log_softmax, logsigmoid

        logits = self._logits(rows)
        if self.activation == "logit":
            return logits[:, self.label].tolist()
        config = self.model.config
        independent = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        log_probs = (logsigmoid(logits) if independent else log_softmax(logits, dim=-1))[:, self.label]
        return (log_probs if self.activation == "log_probability" else log_probs.exp()).tolist()

    def _logits(self, rows: list[list[int]]) -> Tensor:  # (B, C)
        """The model's outputs for a batch, as they are for each row alone.

        A decoder's classifier reads the last token that is not the configuration's padding token. Where there is none,
        transformers takes batches of one only; any token that ends no row of the batch serves.
        """
        last = {row[-1] for row in rows}
        free = next(id for id in count() if id not in last)
        token = free if self.pad_token is None else self.pad_token
        input_ids, attention_mask = _padded(rows, token, self.model.device)
        with _inference(self.model), _padding_token(self.model, token) if self.pad_token is None else nullcontext():
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()


class EmbeddingSimilarity(Reward):
    """The cosine of the embeddings of the response and of the reference that is nearest to it, from -1 to 1.

    An empty response is worth 0. A failed score: a sample without references, an empty reference, and, unless
    ``truncate``, a text that is longer than ``max_length``.

    Args:
        model: The encoder: a name, path or PreTrainedModel, as for :class:`RewardModel`.
        tokenizer: The model's, by default the one of its name or path.
        pooling: What stands for a text: the ``"mean"`` of its tokens' last hidden states, that of its first token
            (``"cls"``) or of its ``"last"``; the encoder's description says for which it was trained.
        batch_size: Texts in one forward pass; those of similar length go together.
        device: As for :class:`RewardModel`.
        dtype: As for :class:`RewardModel`.
        max_length: Tokens of a text, by default as many as model and tokenizer take.
        truncate: Whether a text that is too long is compared by its beginning.

    Raises:
        ModelError: There is no such model, or it has a decoder beside its encoder.
        TokenizerError: There is no such tokenizer, or it has more entries than the model.
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        model: ModelLike,
        tokenizer: TokenizerLike | None = None,
        pooling: Pooling = "mean",
        batch_size: int = 32,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        _check_choice("pooling", pooling, get_args(Pooling))
        # Not every checkpoint has the pooler that some encoders put on top; it is not used here.
        self.model, self.tokenizer = _load("AutoModel", model, tokenizer, device, dtype, may_lack="pooler.")
        if self.model.config.is_encoder_decoder:
            raise ModelError(f"{type(self.model).__name__} has a decoder too; give an encoder.")
        self.pooling = pooling
        self.batch_size = _positive("batch_size", batch_size)
        self.max_length = _max_length(self.model, self.tokenizer, max_length)
        self.truncate = truncate

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The cosine of each; a text that occurs several times is embedded once."""
        texts = dict.fromkeys(text for e in episodes for text in (e.response, *e.sample.references) if text.strip())
        readable = {text: ids for text in texts if (ids := self._ids(text))}
        vectors = _in_batches(readable, self.batch_size, self._embeddings)
        return [self._score(episode, vectors) for episode in episodes]

    def _score(self, episode: Episode, vectors: dict[str, Tensor]) -> Score:
        response, references = episode.response, episode.sample.references
        if not references:
            return _failed(self, f"sample {episode.sample.id!r} has no references.")
        if any(reference not in vectors for reference in references):
            return _failed(self, f"a reference of sample {episode.sample.id!r} is empty or too long (max_length).")
        if not response.strip():
            return Score(0.0)
        if response not in vectors:
            return _failed(self, f"the response takes more than max_length={self.max_length} tokens.")
        return Score(max(float(vectors[response] @ vectors[reference]) for reference in references))

    def _ids(self, text: str) -> list[int] | None:
        def ids_without(cut: int) -> list[int]:
            return self.tokenizer.encode(text[: len(text) - cut], split_special_tokens=True)

        return _fitted(ids_without, len(text) if self.truncate else 0, self.max_length)

    def _embeddings(self, rows: list[list[int]]) -> Tensor:  # (B, D), of length one each
        from torch import arange
        from torch.nn.functional import normalize

        input_ids, attention_mask = _padded(rows, _pad_token(self.model) or 0, self.model.device)
        with _inference(self.model):
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        lengths = attention_mask.sum(dim=1)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            pooled = hidden[arange(len(rows), device=hidden.device), lengths - 1]
        else:
            pooled = (hidden * attention_mask[..., None]).sum(dim=1) / lengths[:, None]
        return normalize(pooled, dim=-1).cpu()


class Fluency(Reward):
    """How likely a causal language model finds the response: the mean log-probability of its tokens.

    In nats a token, from minus infinity to 0; minus the logarithm of the perplexity. A mean, so that length alone does
    not lower it; it depends on how the tokenizer divides a text, so values of different models do not compare. An
    empty response is worth what a uniform guess at a token is, ``-log(V)`` for V tokens.

    What does not fit into the model's context is left out of the beginning of the prompt. A response that is too long
    by itself is a failed score, unless ``truncate``.

    Args:
        model: A causal language model, as for :class:`RewardModel`; textgym's built-in one where None.
        tokenizer: The model's, by default the one of its name or path.
        given_prompt: Whether the model reads what precedes the response, by the tokenizer's chat template where it has
            one. Otherwise the response stands alone, after the tokenizer's bos token (its eos, if it has no bos).
        activation: ``"log_probability"``; or ``"probability"``, which is the exponential of it: the geometric mean of
            the tokens' probabilities, from 0 to 1, the inverse of the perplexity.
        batch_size: Texts in one forward pass; those of similar length go together.
        device: As for :class:`RewardModel`.
        dtype: As for :class:`RewardModel`.
        max_length: Tokens of prompt and response together, by default as many as model and tokenizer take.
        truncate: Whether a response that is too long by itself is scored by its beginning.

    Raises:
        ModelError: There is no such model, or it has no language-model head.
        TokenizerError: There is no such tokenizer, it has more entries than the model, or neither bos nor eos.
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        model: ModelLike | None = None,
        tokenizer: TokenizerLike | None = None,
        given_prompt: bool = True,
        activation: Literal["log_probability", "probability"] = "log_probability",
        batch_size: int = 8,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        _check_choice("activation", activation, ("log_probability", "probability"))
        source = load_tokenizer(None).name_or_path if model is None else model
        self.model, self.tokenizer = _load("AutoModelForCausalLM", source, tokenizer, device, dtype)
        self.renderer = Renderer(self.tokenizer)
        self.given_prompt = given_prompt
        self.activation = activation
        self.batch_size = _positive("batch_size", batch_size)
        self.max_length = _max_length(self.model, self.tokenizer, max_length)
        self.truncate = truncate
        self.start = _start_token(self.tokenizer)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The mean of each response; one that cannot be read fails alone."""
        responses = [self._response_ids(episode.response) for episode in episodes]
        rows = {
            i: self._context_ids(episode, self.max_length - len(response)) + response
            for i, (episode, response) in enumerate(zip(episodes, responses, strict=True))
            if isinstance(response, list)
        }
        log_probs = _in_batches(rows, self.batch_size, self._log_probs)
        return [
            response if isinstance(response, Score) else self._score(float(log_probs[i][-len(response) :].mean()))
            for i, response in enumerate(responses)
        ]

    def _score(self, log_probability: float) -> Score:
        return Score(math.exp(log_probability) if self.activation == "probability" else log_probability)

    def _response_ids(self, response: str) -> list[int] | Score:
        ids = self.tokenizer.encode(response, add_special_tokens=False, split_special_tokens=True)
        if not ids:
            return self._score(-math.log(len(self.tokenizer)))
        if len(ids) < self.max_length:  # at least one token precedes it
            return ids
        if self.truncate:
            return ids[: self.max_length - 1]
        return _failed(self, f"the response takes {len(ids)} tokens, and only {self.max_length - 1} fit (max_length).")

    def _context_ids(self, episode: Episode, room: int) -> list[int]:
        """What stands before the response, at most its last ``room`` tokens."""
        if not self.given_prompt:
            return [self.start]
        messages, _ = _messages_and_response(episode)
        prompt = messages if self.renderer.format == "chat" else prompt_and_response(episode)[0]
        return (self.renderer.prompt_ids(Sample(episode.sample.id, prompt)) or [self.start])[-room:]

    def _log_probs(self, rows: list[list[int]]) -> list[Tensor]:
        """The log-probability of every token of each row but its first."""
        from torch.nn.functional import cross_entropy

        input_ids, attention_mask = _padded(rows, 0, self.model.device)
        with _inference(self.model):
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            logits = logits[:, :-1, : len(self.tokenizer)].float()  # (B, T-1, V): some heads are wider
            log_probs = -cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")  # (B, T-1)
        return [row[: len(ids) - 1] for row, ids in zip(log_probs.cpu(), rows, strict=True)]


def prompt_and_response(episode: Episode) -> tuple[str, str]:
    """What the agent's last turn answers, as one text, and that turn.

    A prompt that is a text and was answered once stands as it is; several messages are ``role: text`` lines.
    """
    messages, response = _messages_and_response(episode)
    if len(messages) == 1 and isinstance(episode.sample.prompt, str):
        return episode.sample.prompt, response
    lines = [PLAIN_LINE.format(role=message["role"], content=message["content"].strip()) for message in messages]
    return "\n".join([*lines, "assistant:"]), response


def _messages_and_response(episode: Episode) -> tuple[list[dict[str, str]], str]:
    """The messages before the agent's last turn, and that turn; it is empty before its first."""
    n_after = next((n for n, turn in enumerate(reversed(episode.turns), start=1) if turn.role == "assistant"), 0)
    messages = episode.messages
    return messages[: len(messages) - n_after], episode.response


def check_template(template: str, fields: Sequence[str], needed: str) -> None:
    """Checks a format string before it is used.

    Raises:
        ConfigurationError: It cannot be read, has a field that is not one of ``fields``, or lacks the one needed.
    """
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigurationError(f"template={template!r}: {error}; braces as text are doubled.") from error
    unknown = found - set(fields)
    if unknown:
        raise ConfigurationError(
            f"template={template!r} has the fields {sorted(unknown)}; there are {', '.join(fields)}. Braces as text "
            "are doubled."
        )
    if needed not in found:
        raise ConfigurationError(f"template={template!r} does not show the {needed}: write {{{needed}}} into it.")


def _checked_template(template: Template | None, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The template to use; None for the tokenizer's chat template."""
    if template is None:
        return None if tokenizer.chat_template else "{prompt}{response}"
    if isinstance(template, str):
        check_template(template, ("prompt", "response"), needed="response")
    elif not callable(template):
        raise ConfigurationError(f"template={template!r} is neither a format string nor a function.")
    return template


def _markup(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What a text must not spell: special tokens, and the added tokens that a chat template makes use of."""
    template = str(tokenizer.chat_template or "")
    added = tokenizer.added_tokens_decoder.values()
    tokens = [t.content for t in added if t.content.strip() and (t.special or t.content in template)]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _without_beginning(messages: list[dict[str, str]], cut: int) -> list[dict[str, str]]:
    """The messages without the first ``cut`` characters of their texts; roles stay, since templates ask for them."""
    shortened = []
    for message in messages:
        shortened.append({**message, "content": message["content"][cut:]})
        cut = max(0, cut - len(message["content"]))
    return shortened


def _fitted(ids_without: Callable[[int], list[int]], limit: int, max_length: int) -> list[int] | None:
    """The ids with no more characters left out than makes them fit; None if even ``limit`` is too few.

    A character less may make a token more, so the bisection can miss the fewest by the characters of a token.
    """

    def fits(cut: int) -> bool:
        return len(ids_without(cut)) <= max_length

    cut = 0 if fits(0) else bisect_left(range(limit + 1), True, key=fits)
    return ids_without(cut) if cut <= limit else None


def _load(
    auto_class: str,
    model: ModelLike,
    tokenizer: TokenizerLike | None,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    may_lack: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer; ``may_lack`` is the prefix of weights that are not used."""
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        loaded = load_pretrained(auto_class, name, device, dtype, may_lack)
    elif hasattr(model, "config") and hasattr(model, "forward"):
        if device != "auto" or dtype is not None:
            raise ConfigurationError(
                "device and dtype are for a model that is loaded; move this one yourself: model.to(...)."
            )
        name, loaded = str(getattr(model, "name_or_path", "")), model
    else:
        raise ModelError(f"a model is a name, a path or a PreTrainedModel, not {type(model).__name__}.")
    if tokenizer is None and not name:
        raise ConfigurationError("the model does not say which tokenizer is its own: pass tokenizer=...")
    its_tokenizer = load_tokenizer(name if tokenizer is None else tokenizer)
    n_embeddings = _n_embeddings(loaded)
    if len(its_tokenizer) > n_embeddings:
        raise TokenizerError(
            f"the tokenizer has {len(its_tokenizer)} entries, the reward's model only {n_embeddings}: give the "
            "tokenizer with which this model was trained, which need not be the agent's."
        )
    return loaded, its_tokenizer


def _label_index(config: Any, label: str | int | None) -> int:
    names = [config.id2label[i] for i in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ConfigurationError(
        f"label={label!r}: the model's classes are {', '.join(map(repr, names))}; name one or give its index."
    )


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: int | None) -> int:
    """The given one, or what both can take; a tokenizer that does not know says a very large number."""
    if given is not None:
        return _positive("max_length", given)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(positions or tokenizer.model_max_length, tokenizer.model_max_length)


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise TokenizerError("the tokenizer has neither a bos nor an eos token, with which a text could begin.")
    return start


def _n_embeddings(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _pad_token(model: PreTrainedModel) -> int | None:
    """The configuration's padding token, where it names one that can be embedded."""
    pad = model.config.get_text_config().pad_token_id
    return pad if pad is not None and 0 <= pad < _n_embeddings(model) else None


_PADDING_LOCK = Lock()


@contextmanager
def _padding_token(model: PreTrainedModel, token: int) -> Iterator[None]:
    """Inside, the model's configuration names this padding token; one thread at a time."""
    config = model.config.get_text_config()
    with _PADDING_LOCK:
        before, config.pad_token_id = config.pad_token_id, token
        try:
            yield
        finally:
            config.pad_token_id = before


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """Inside, there is neither dropout nor gradient."""
    import torch

    model.eval()
    with torch.inference_mode():
        yield


def _in_batches(
    rows: Mapping[Key, list[int]], batch_size: int, forward: Callable[[list[list[int]]], Iterable[Value]]
) -> dict[Key, Value]:
    """What ``forward`` gives for each row. Rows of similar length go together, so that little is padding."""
    keys = sorted(rows, key=lambda key: len(rows[key]))
    results: dict[Key, Value] = {}
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        results.update(zip(batch, forward([rows[key] for key in batch]), strict=True))
    return results


def _padded(rows: list[list[int]], token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (B, T) each, int64, padded on the right."""
    import torch

    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[token] * (length - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(length, device=device) < lengths[:, None]).long()


def _failed(reward: Reward, reason: str) -> Score:
    return Score(None, status=f"{reward.name}: {reason}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}; it is one of {', '.join(map(repr, choices))}.")


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigurationError(f"{name}={value!r}; it is at least 1.")
    return value
