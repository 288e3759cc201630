"""A transformers encoder-decoder with a value head as a Stable-Baselines3 policy.

A token environment's observation is one stream. At each of the agent's turns the encoder reads the stream up to where
the turn begins, and the decoder what the agent has written since.

Shapes: R rows (streams) of a group, W tokens of its longest, n actions in them, K turns of the agent that the actions
belong to, E tokens of the longest encoder input, L of the longest decoder input, D the model's width, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from textgym.agents.language_model import (
    ModelLike,
    decoder_head_logits,
    is_encoder_decoder,
    load_seq2seq_lm,
    plain_head,
    trunk_of,
    unwrapped,
)
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.segments import SegmentGroup
from textgym.errors import ConfigurationError, ModelError

__all__ = ["Seq2SeqLMPolicy", "Turns", "encoder_eos_of", "policy_class_of", "split_turns"]

PARTS_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What a model raises whose parts are not called as T5's and BART's are."""


class Seq2SeqLMPolicy(CausalLMPolicy):
    """An actor-critic policy whose actor is an encoder-decoder, such as T5 or BART.

    For each of the agent's turns the encoder reads all that stands before it (the prompt, earlier turns, the
    environment's messages), and the decoder continues what the agent has written in the turn so far. A turn is what
    stands in the observation's ``agent_mask`` without a break, so where an environment lets the agent begin a new turn
    without a token of its own in between, the two are one here. The value head is on the decoder's last hidden state.

    It works where :class:`textgym.agents.CausalLMPolicy` does, :class:`textgym.agents.DQN` excepted. In an update the
    encoder runs once a turn; a rollout has no cache yet, and each step encodes its whole stream.

    Args:
        observation_space, action_space, lr_schedule: As in :class:`textgym.agents.CausalLMPolicy`.
        model: A name, a path, a PreTrainedModel (used in place, in its own precision) or a configuration (random
            weights); there is no built-in one.
        encoder_eos: Whether the end-of-sequence token of the model's configuration closes what the encoder reads, as
            encoder-decoders are trained; environments leave it off their prompts, for the agent to go on. A reference
            reads and begins as the policy does.
        **kwargs: As in :class:`textgym.agents.CausalLMPolicy`.

    Raises:
        ConfigurationError: No model is named, the model's configuration does not say what its decoder starts with, the
            spaces are not those of a token environment, or the model's context is too short.
        TokenizerError: The environment's tokenizer has more entries than the model's head.
        ModelError: There is no such model, it is no encoder-decoder, or it is one of a form that is not known here.
    """

    load_model = staticmethod(load_seq2seq_lm)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: ModelLike | nn.Module | None = None,
        encoder_eos: bool = True,
        **kwargs: Any,
    ) -> None:
        if model is None:
            raise ConfigurationError(
                "Seq2SeqLMPolicy has no built-in model; name one: policy_kwargs={'model': 'google/flan-t5-small'}."
            )
        self.encoder_eos = encoder_eos
        super().__init__(observation_space, action_space, lr_schedule, model=model, **kwargs)

    def _check_model(self) -> None:
        super()._check_model()
        config = unwrapped(self.model).config
        self.start_token = _start_token(config)
        self.closing_token = encoder_eos_of(self.model) if self.encoder_eos else None
        self._check_parts()

    def action_states(self, trunk: nn.Module, group: SegmentGroup) -> Tensor:
        """The decoder's last hidden states (n, D) that a group's actions are predicted from, each turn run once."""
        turns = split_turns(group, self.start_token, self.closing_token)
        parts: Any = trunk
        read = parts.get_encoder()(input_ids=turns.encoder_ids, attention_mask=turns.encoder_mask)[0]
        states = parts.get_decoder()(
            input_ids=turns.decoder_ids,
            encoder_hidden_states=read,
            encoder_attention_mask=turns.encoder_mask,
            use_cache=False,
        )[0]
        return states[turns.rows, turns.columns]

    def head_logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """A model's own logits (N, V) at its decoder's last hidden states (N, D), as wide as its head."""
        return decoder_head_logits(model, hidden)

    def _finds_plain_head(self, model: nn.Module) -> bool:
        """A model with buffers of its own may add them to its logits, and what they hold may still be loaded."""
        has_buffers = any(True for _ in unwrapped(model).buffers(recurse=False))
        return not has_buffers and plain_head(model, self.head_logits) is not None

    def _can_decode_incrementally(self) -> bool:
        return False

    def _check_parts(self) -> None:
        """Compares encoder, decoder and head, run one after the other, with the model's own pass, on a short reply."""
        device = next(self.model.parameters()).device
        places = torch.arange(5, device=device)
        group = SegmentGroup(places[None] % self.n_actions, places[None] > 2, torch.zeros_like(places[2:]), places[2:])
        turns = split_turns(group, self.start_token, self.closing_token)
        try:
            with torch.no_grad():
                ours = self.head_logits(self.model, self.action_states(trunk_of(self.model), group))
                inputs = {"input_ids": turns.encoder_ids, "decoder_input_ids": turns.decoder_ids}
                whole = self.model(**inputs, use_cache=False).logits[0]
            agree = torch.allclose(ours, whole, rtol=0, atol=2e-2 * float(whole.abs().max()))
            reason = "the logits are not those of the model's own pass."
        except PARTS_ERRORS as error:
            agree, reason = False, f"{type(error).__name__}: {error}"
        if not agree:
            raise ModelError(
                f"{type(unwrapped(self.model)).__name__} is an encoder-decoder whose encoder, decoder and head "
                f"Seq2SeqLMPolicy cannot run one by one: {reason}"
            )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "encoder_eos": self.encoder_eos}


@dataclass(frozen=True)
class Turns:
    """The agent's turns as an encoder-decoder takes them, and where their actions are predicted.

    Args:
        encoder_ids: (K, E) int64, what stands before each turn; arbitrary beyond it.
        encoder_mask: (K, E) int64, 1 on what stands before each turn, and on the token that closes it.
        decoder_ids: (K, L) int64, the decoder's start token and the turn's tokens; arbitrary beyond them.
        rows: (n,) int64, the turn of each action.
        columns: (n,) int64, the decoder's position that predicts it.
    """

    encoder_ids: Tensor
    encoder_mask: Tensor
    decoder_ids: Tensor
    rows: Tensor
    columns: Tensor


def split_turns(group: SegmentGroup, start_token: int, closing_token: int | None = None) -> Turns:
    """Cuts the streams of a group into the turns that its actions belong to.

    A turn begins after the last token that is not the agent's, and never with a stream's first token, so that there is
    always something to read.

    Args:
        group: R streams and n actions.
        start_token: What a decoder's input begins with.
        closing_token: What an encoder's input ends with; None: with the stream's own token.
    """
    width = group.input_ids.shape[1]
    places = torch.arange(width, device=group.input_ids.device)
    others = torch.where(group.agent_mask, -1, places).cummax(1).values  # (R, W): the last token not the agent's
    starts = (others[group.rows, group.columns] + 1).clamp_min(1)
    # a turn is known by its row and where it begins
    keys, turns = torch.unique(group.rows * (width + 1) + starts, return_inverse=True)
    ids, begins = group.input_ids[keys // (width + 1)], (keys % (width + 1))[:, None]  # (K, W), (K, 1)
    encoder_ids, encoder_mask = ids[:, : int(begins.max())], places[: int(begins.max())] < begins
    if closing_token is not None:
        encoder_ids = nn.functional.pad(encoder_ids, (0, 1)).scatter(1, begins, closing_token)
        encoder_mask = nn.functional.pad(encoder_mask, (1, 0), value=True)
    columns = group.columns - starts + 1
    written = ids.gather(1, (begins + places[: int(columns.max())]).clamp_max(width - 1))
    decoder_ids = nn.functional.pad(written, (1, 0), value=start_token)
    return Turns(encoder_ids, encoder_mask.long(), decoder_ids, turns, columns)


def policy_class_of(model: ModelLike | nn.Module) -> type[CausalLMPolicy]:
    """The policy for a model, or for the one of this name, path or configuration.

    Raises:
        ModelError: There is none of this name.
    """
    return Seq2SeqLMPolicy if is_encoder_decoder(model) else CausalLMPolicy


def _start_token(config: Any) -> int:
    token = getattr(config, "decoder_start_token_id", None)
    if token is None:
        raise ConfigurationError(
            f"the model's configuration ({type(config).__name__}) does not say what its decoder starts with; set "
            "model.config.decoder_start_token_id to the id that it was trained with (T5's is its padding token's, "
            "BART's its end-of-sequence token's)."
        )
    return int(token)


def encoder_eos_of(model: nn.Module) -> int | None:
    """The token that closes what a model's encoder reads: the end-of-sequence token of its configuration, if any."""
    token = getattr(unwrapped(model).config, "eos_token_id", None)
    return token[0] if isinstance(token, list) else token
