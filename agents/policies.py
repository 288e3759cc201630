"""A transformers language model with a value head as a Stable-Baselines3 policy.

Shapes: B rows, W tokens in the longest, N actions (tokens of the agent), D the model's width, V the action space.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PretrainedConfig

from textgym.adapters import (
    AdaptedModel,
    base_name,
    base_weights,
    check_base,
    fingerprint,
    fixed_weights,
    is_adapted,
    switches_off,
)
from textgym.agents.decoding import IncrementalDecoder, supports_row_cache
from textgym.agents.heads import sample_inverse_cdf, token_log_probs, truncate
from textgym.agents.inference import FixedLinear, autocast, inference_copy
from textgym.agents.language_model import (
    CausalLM,
    ModelLike,
    head_logits,
    load_causal_lm,
    load_value_trunk,
    plain_head,
    portable_model,
    positions_of,
    trunk_copy,
    trunk_of,
    unwrapped,
)
from textgym.agents.segments import SegmentGroup, TokenSegments
from textgym.errors import ConfigurationError, ModelError, TokenizerError
from textgym.rendering import load_tokenizer

__all__ = ["CausalLMPolicy"]

OBSERVATION_KEYS = {"input_ids", "attention_mask", "agent_mask"}
VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_MODEL_FOLDER = "value_model"  # its configuration, where it is not the actor's; its weights are in that file
BASE_FINGERPRINT = "base_fingerprint"  # in that file's metadata: of the base model that an adapter was trained on
Observation = dict[str, Tensor]


@dataclass(frozen=True)
class _Sources:
    """What the networks are built from, kept out of the module's own submodules."""

    model: Any
    value: str | Path | PretrainedConfig
    peft_config: Any


class CausalLMPolicy(ActorCriticPolicy):
    """An actor-critic policy whose actor is a causal language model.

    It works in :class:`textgym.agents.PPO`, where rollout and update cost what the tokens cost, and, slowly (each step
    encodes its whole prefix), in Stable-Baselines3's own PPO and A2C.

    Args:
        observation_space: A token environment's ``Dict(input_ids, attention_mask, agent_mask)`` of ``(max_context,)``.
        action_space: ``Discrete``: the tokenizer's length. Where the model's head is wider, the surplus is cut off.
        lr_schedule: As in SB3.
        model: A name, a path, a PreTrainedModel (used in place, in its own precision) or a configuration (random
            weights); None: textgym's built-in model. A folder written by :meth:`save_pretrained` brings its value head.
        value: ``"shared"``: a linear head on the language model's last hidden state. ``"separate"``: on a copy of its
            trunk (or the value model that the folder was saved with). Otherwise the name or path of a model whose trunk
            it starts from, a configuration, or a reward model of one score, such as
            :class:`textgym.agents.RewardModelTrainer` saves: the value is then at first the reward model's score of the
            tokens so far (Ouyang et al., "Training language models to follow instructions with human feedback", 2022,
            section 3.5, https://arxiv.org/abs/2203.02155). It reads the policy's own token ids, to the last one;
            transformers' classifiers pass over tokens at the end that are their padding token.
        peft_config: A peft configuration; only the adapter and the value head are then trained (and a value model of
            its own, whose trunk then has an adapter too where it is a copy). A folder with an adapter needs none: its
            adapter is trained on.
        dtype: ``"bfloat16"`` computes under autocast with the weights kept as they are; None: in the weights' own
            precision.
        temperature: Divides the logits, in sampling and in all log-probabilities alike.
        top_k: Only the ``top_k`` likeliest tokens have a probability; None: all.
        top_p: Of these, only the fewest likeliest with at least this probability together; None: all.
        optimizer_class: As in SB3.
        optimizer_kwargs: As in SB3; by default ``eps=1e-5`` (SB3's own) and the fused implementation of Adam.

    With ``top_k`` or ``top_p`` the policy *is* the truncated distribution: in sampling, in old and new
    log-probabilities, in the entropy and in the reference's log-probabilities alike. The tokens that are left are those
    of the weights at the time, so an action may have left the set when its new log-probability is asked for, or be
    outside the reference's. It then counts as one of the set: the ratio is finite where by the letter it is 0, and the
    KL to the reference where it is infinite, which is thus estimated too low. When an action is drawn it is in the set,
    and the ratio starts at 1. The gradient does not see the set move.

    Raises:
        ConfigurationError: The spaces are not those of a token environment, the model's context is too short, or an
            option has a wrong value.
        TokenizerError: The environment's tokenizer has more entries than the model's head.
        ModelError: There is no such model.
    """

    load_model = staticmethod(load_causal_lm)
    """How a model is had from a name, a path, a configuration or itself; the reference, too."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: ModelLike | nn.Module | None = None,
        value: str | Path | PretrainedConfig = "shared",
        peft_config: Any = None,
        dtype: str | torch.dtype | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        _check_spaces(observation_space, action_space)
        if use_sde:
            raise ConfigurationError("use_sde=True is for continuous actions; a token environment's are discrete.")
        _check_sampling(temperature, top_k, top_p)
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        self._sources = _Sources(builtin_model_path() if model is None else model, value, peft_config)
        self.compute_dtype = _as_dtype(dtype)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.tokenizer: Any = None
        self.entropy_gradient = True
        self._decoders: list[IncrementalDecoder] | None = None
        self._decoding_head: FixedLinear | None = None
        self._row_generators: list[np.random.Generator] | None = None
        self._before_forward: Callable[[], None] = lambda: None
        self._at_rollout_end: Callable[[], bool] = lambda: False
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        self.max_context = int(self.observation_space["input_ids"].shape[0])  # type: ignore[index]
        self.model: CausalLM = self.load_model(self._sources.model, self._sources.peft_config)
        self._check_model()
        self.value_trunk, score = self._build_value_trunk()
        trunk = self.value_trunk or trunk_of(self.model)
        width = trunk.config.get_text_config(decoder=True).hidden_size
        self.value_head = nn.Linear(width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if score is not None:
            self.value_head.load_state_dict(score.state_dict(), strict=False)  # most have no bias
        if self._sources.value in ("shared", "separate"):
            self._load_value_head()
        self.plain_head = self._finds_plain_head(self.model)
        self.can_decode_incrementally = self._can_decode_incrementally()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _build_value_trunk(self) -> tuple[Any, nn.Linear | None]:
        """The critic's own transformer, None where it is the actor's; and the head that it came with, if any."""
        source = self._sources.value
        if source == "shared":
            return None, None
        if source == "separate":
            source = self._saved_value_config() or source
        self._value_is_copy = source == "separate"
        if source == "separate":
            return trunk_copy(self.model), None
        trunk, score = load_value_trunk(source, self.load_model)
        _check_value_fit(trunk, source, self.n_actions, self.max_context)
        return trunk, score

    def _saved_value_config(self) -> PretrainedConfig | None:
        """The value model's configuration, where :meth:`save_pretrained` wrote one that is not the actor's."""
        folder = self._saved_folder()
        if folder is None or not (folder / VALUE_MODEL_FOLDER / "config.json").is_file():
            return None
        return AutoConfig.from_pretrained(folder / VALUE_MODEL_FOLDER)

    def _saved_folder(self) -> Path | None:
        source = self._sources.model
        return Path(source).expanduser() if isinstance(source, (str, Path)) else None

    def _trunks(self) -> list[Any]:
        trunks = [trunk_of(self.model)]
        return trunks if self.value_trunk is None else [*trunks, self.value_trunk]

    def _check_model(self) -> None:
        self.check_fit(self.model)

    def check_fit(self, model: CausalLM, whose: str = "the model's") -> None:
        """Raises TokenizerError or ConfigurationError where a model is too small for the environment."""
        _check_fit(model, self.n_actions, self.max_context, whose)

    def _finds_plain_head(self, model: CausalLM) -> bool:
        return plain_head(model) is not None

    def _has_plain_head(self, model: CausalLM) -> bool:
        return self.plain_head if model is self.model else self._finds_plain_head(model)

    def _can_decode_incrementally(self) -> bool:
        return all(supports_row_cache(trunk, self.max_context) for trunk in self._trunks())

    # ------------------------------------------------------------------ acting

    @contextmanager
    def incremental_decoding(
        self,
        n_rows: int,
        before_forward: Callable[[], None] = lambda: None,
        at_rollout_end: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Inside, batches of ``n_rows`` observations are encoded incrementally, row i after row i.

        The weights must not change inside. Models that cannot be decoded like this encode whole prefixes as before.

        Args:
            n_rows: The number of environments.
            before_forward: Called before each action is chosen.
            at_rollout_end: Tells whether only the values of unfinished episodes are still wanted: rows that have just
                started again are then left out, since their value is multiplied by zero.
        """
        # an evaluation may lie inside a rollout
        outer = self._decoders, self._decoding_head, self._before_forward, self._at_rollout_end
        if self.can_decode_incrementally:
            precision = self.compute_dtype, torch.float32 if self._decodes_without_autocast else None
            self._decoders = [IncrementalDecoder(inference_copy(t, *precision), n_rows) for t in self._trunks()]
            self._decoding_head = FixedLinear(*self._head(self.model), *precision) if self.plain_head else None
        self._before_forward, self._at_rollout_end = before_forward, at_rollout_end
        try:
            yield
        finally:
            self._decoders, self._decoding_head, self._before_forward, self._at_rollout_end = outer

    def forward(self, obs: Observation, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Actions (B,) int64, values (B, 1) and log-probabilities (B,) float32."""
        self._before_forward()
        hidden, hidden_value = self.last_hidden(obs)
        actions, log_prob = self.choose(self.logits(hidden), deterministic)
        return actions, self.values(hidden_value), log_prob

    def _predict(self, observation: Observation, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        hidden, _ = self.last_hidden(observation)
        return self.choose(self.logits(hidden), deterministic)[0]

    def get_distribution(self, obs: Observation) -> Distribution:  # type: ignore[override]
        """The distribution over next tokens as SB3's categorical one."""
        hidden, _ = self.last_hidden(obs)
        return CategoricalDistribution(self.n_actions).proba_distribution(self.logits(hidden))

    def predict_values(self, obs: Observation) -> Tensor:  # type: ignore[override]
        """Values (B, 1) float32."""
        return self.values(self.last_hidden(obs, skip_restarts=self._at_rollout_end())[1])

    def choose(self, logits: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        """Actions (B,) int64 from logits (B, V), the likeliest or drawn, and their log-probabilities (B,)."""
        probabilities = logits.softmax(-1)
        actions = logits.argmax(-1) if deterministic else sample_inverse_cdf(probabilities, self._uniform(logits))
        return actions, probabilities.gather(-1, actions[:, None]).squeeze(-1).log()

    def _uniform(self, logits: Tensor) -> Tensor:
        """A number from [0, 1) for each row (B,)."""
        if self._row_generators is None:
            return torch.rand(len(logits), device=logits.device)
        return torch.tensor([g.random(dtype=np.float32) for g in self._row_generators], device=logits.device)

    @contextmanager
    def sampling_by_row(self, seeds: Sequence[int]) -> Iterator[None]:
        """Inside, row i of every batch draws from a generator of its own, begun with ``seeds[i]``.

        So what a row draws does not depend on its neighbours. All batches have ``len(seeds)`` rows.
        """
        self._row_generators = [np.random.default_rng(seed) for seed in seeds]
        try:
            yield
        finally:
            self._row_generators = None

    def last_hidden(self, obs: Observation, skip_restarts: bool = False) -> tuple[Tensor, Tensor]:
        """The actor's and the critic's hidden states (B, D) at each row's last token.

        With ``skip_restarts`` incremental decoding leaves out the rows that start again: theirs are arbitrary.
        """
        input_ids = obs["input_ids"].long()
        lengths = obs["attention_mask"].sum(-1, dtype=torch.long).clamp_min(1)
        if self._decoders is not None and self._decoders[0].cache.n_rows == len(input_ids):
            with nullcontext() if self._decodes_without_autocast else self.autocast():
                states = [decoder.advance(input_ids, lengths, skip_restarts) for decoder in self._decoders]
            return states[0], states[-1]
        width = int(lengths.max())
        rows = torch.arange(len(input_ids), device=input_ids.device)
        group = SegmentGroup(input_ids[:, :width], obs["agent_mask"][:, :width].bool(), rows, lengths - 1)
        with self.autocast():
            states = [self.action_states(trunk, group) for trunk in self._trunks()]
        return states[0], states[-1]

    # ---------------------------------------------------------------- training

    def evaluate_actions(  # type: ignore[override]
        self, obs: Observation | TokenSegments, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (N, 1), log-probabilities (N,) and entropies (N,) of actions (N,) under the current weights.

        Segments, which our buffer yields, are encoded once each; plain observations, which SB3's yields, one by one.
        """
        if not isinstance(obs, TokenSegments):
            return self._evaluated(*self.last_hidden(obs), actions)
        if not (obs.one_by_one and torch.is_grad_enabled()):
            return self._evaluate_groups(obs.groups, actions)
        of_groups = actions.split([len(group.rows) for group in obs.groups])
        parts = [
            checkpoint(self._evaluate_groups, (group,), own, use_reentrant=False, preserve_rng_state=False)
            for group, own in zip(obs.groups, of_groups, strict=True)
        ]
        values, log_prob, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        return values, log_prob, entropy

    def _evaluate_groups(self, groups: Sequence[SegmentGroup], actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.autocast():
            states = [torch.cat([self.action_states(trunk, group) for group in groups]) for trunk in self._trunks()]
        return self._evaluated(states[0], states[-1], actions)

    def _evaluated(self, hidden: Tensor, hidden_value: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_prob, entropy = self.log_probs(hidden, actions)
        return self.values(hidden_value), log_prob, entropy

    def log_probs(self, hidden: Tensor, actions: Tensor, model: CausalLM | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, float32 (N,), of actions (N,) after hidden states (N, D).

        Args:
            hidden: The last hidden states of ``model``.
            actions: Token ids.
            model: Whose head to use; None: the policy's own.
        """
        model = self.model if model is None else model
        actions = actions.long().flatten()
        if self._has_plain_head(model):
            weight, bias = self._head(model)
            with self.autocast():
                options = self.temperature, self.entropy_gradient, self.top_k, self.top_p
                return token_log_probs(hidden, weight, bias, actions, *options)
        logits = self.logits(hidden, model, kept=actions)
        distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        with nullcontext() if self.entropy_gradient else torch.no_grad():
            entropy = distribution.entropy()
        return distribution.log_prob(actions), entropy

    def _head(self, model: CausalLM) -> tuple[Tensor, Tensor | None]:
        """Weight (V, D) and bias (V,) of a plain head, cut to the action space."""
        head = unwrapped(model).get_output_embeddings()
        return head.weight[: self.n_actions], None if head.bias is None else head.bias[: self.n_actions]

    def encode(self, trunk: nn.Module, input_ids: Tensor) -> Tensor:
        """(B, W) right-padded to (B, W, D); causal attention keeps padding out of what comes before it."""
        return trunk(input_ids=input_ids, use_cache=False)[0]

    def action_states(self, trunk: nn.Module, group: SegmentGroup) -> Tensor:
        """The hidden states (n, D) that a group's actions are predicted from, each segment encoded once."""
        return self.encode(trunk, group.input_ids)[group.rows, group.columns]

    def reference_log_probs(self, model: CausalLM, segments: TokenSegments, actions: Tensor) -> Tensor:
        """Log-probabilities (N,) float32 of the segments' actions under another model with the same vocabulary."""
        trunk = inference_copy(trunk_of(model), self.compute_dtype)
        with torch.no_grad(), self.autocast():
            hidden = torch.cat([self.action_states(trunk, group) for group in segments.groups])
            return self.log_probs(hidden, actions, model)[0]

    def logits(self, hidden: Tensor, model: CausalLM | None = None, kept: Tensor | None = None) -> Tensor:
        """Tempered logits (N, V) in float32, cut to the action space; minus infinity where they are truncated.

        Args:
            hidden: (N, D), the last hidden states of ``model``.
            model: Whose head to use; None: the policy's own.
            kept: (N,) tokens that are not cut off in any case.
        """
        model = self.model if model is None else model
        if model is self.model and self._decoding_head is not None:
            logits = self._decoding_head(hidden)
        else:
            with self.autocast():
                plain = self._has_plain_head(model)
                logits = F.linear(hidden, *self._head(model)) if plain else self.head_logits(model, hidden)
        logits = logits[:, : self.n_actions]
        logits = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        return truncate(logits, self.top_k, self.top_p, kept)

    def head_logits(self, model: CausalLM, hidden: Tensor) -> Tensor:
        """A model's own logits (N, V') at its last hidden states (N, D), as wide as its head."""
        return head_logits(model, hidden)

    def values(self, hidden: Tensor) -> Tensor:
        """Values (N, 1) float32 at the critic's hidden states (N, D)."""
        return self.value_head(hidden.float())

    @property
    def _decodes_without_autocast(self) -> bool:
        """On a CPU only the products are in a lower precision: of a few rows the rest costs no less there."""
        return self.compute_dtype is not None and self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the networks compute in."""
        if self.compute_dtype is None:
            return nullcontext()
        return autocast(self.device.type, self.compute_dtype)

    # ------------------------------------------------------------------ saving

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes an ordinary transformers folder: safetensors and JSON only, the value head in a file of its own.

        The model's Auto class loads it, and ``policy_kwargs={"model": folder}`` goes on training from it. Of a model
        with an adapter it holds the adapter only, in peft's form, and its base model's name or path.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)  # type: ignore[operator]
        # clones, since safetensors writes no two names of one tensor, which tied embeddings are
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._value_state().items()}
        metadata = {"format": "pt"}
        if self.uses_adapter:
            metadata[BASE_FINGERPRINT] = fingerprint(base_weights(self.model))
        save_file(state, folder / VALUE_HEAD_FILE, metadata=metadata)
        (folder / VALUE_MODEL_FOLDER / "config.json").unlink(missing_ok=True)
        if self.value_trunk is not None and not self._value_is_copy:
            self.value_trunk.config.save_pretrained(folder / VALUE_MODEL_FOLDER)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def _value_state(self) -> dict[str, Tensor]:
        trunk = {} if self.value_trunk is None else self.value_trunk.state_dict(prefix="trunk.")
        left_out = {} if self.value_trunk is None else names_of(fixed_weights(self.model), self.value_trunk, "trunk.")
        state = {**self.value_head.state_dict(), **trunk}
        return {name: tensor for name, tensor in state.items() if name not in left_out}

    def _load_value_head(self) -> None:
        """Takes what :meth:`save_pretrained` wrote, where the source is such a folder of the same kind of value."""
        folder = self._saved_folder()
        if folder is None or not (file := folder / VALUE_HEAD_FILE).is_file():
            return
        with safe_open(file, "pt") as opened:
            check_base(self.model, base_name(self.model), (opened.metadata() or {}).get(BASE_FINGERPRINT))
        state, own = load_file(file), self._value_state()
        if state.keys() != own.keys():
            return  # a shared head is no use on a separate trunk, nor the other way round
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                raise ModelError(f"{file}: {name} has the shape {shapes}; give the folder of the same model.")
            tensor.data.copy_(state[name])

    def rebuilding_kwargs(self) -> dict[str, Any]:
        """What builds this policy again, with other weights, and needs no file but a base model's, if any."""
        value: Any = "shared"
        if self.value_trunk is not None:
            value = "separate" if self._value_is_copy else self.value_trunk.config
        return {"model": portable_model(self.model), "value": value, "peft_config": None}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **self.rebuilding_kwargs(),
            "dtype": self.compute_dtype,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    @property
    def uses_adapter(self) -> bool:
        """Whether the model is a peft model, whose base model is found by switching the adapter off."""
        return is_adapted(self.model)

    @property
    def started_without_adapter(self) -> bool:
        """Whether the model began as its own base model: its adapter is new, and can be switched off without trace."""
        is_new = self._sources.peft_config is not None or isinstance(self._sources.model, AdaptedModel)
        return is_new and self.uses_adapter and switches_off(self.model)

    @property
    def recomputes_log_probs(self) -> bool:
        """Whether rollout and update round differently, so that old log-probabilities must come from an update pass."""
        return self.compute_dtype is not None or next(self.model.parameters()).dtype != torch.float32


def names_of(weights: Sequence[Tensor], module: nn.Module, prefix: str = "") -> set[str]:
    """What these very parameters are called in a module's state."""
    wanted = {id(weight) for weight in weights}
    found = module.named_parameters(remove_duplicate=False)
    return {prefix + name for name, parameter in found if id(parameter) in wanted}


def builtin_model_path() -> str:
    """The folder of the model and tokenizer that ship with textgym."""
    import textgym

    return str(Path(textgym.__file__).parent / "builtin")


def source_and_tokenizer(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Where a model comes from, the built-in one's folder for None; and its tokenizer, unless another is given.

    Raises:
        TokenizerError: The model is given as an object, and no tokenizer with it; or there is no such tokenizer.
    """
    source = builtin_model_path() if model is None else os.fspath(model) if isinstance(model, os.PathLike) else model
    if tokenizer is None and not isinstance(source, str):
        raise TokenizerError(f"a model given as a {type(source).__name__} needs its tokenizer too: tokenizer=...")
    return source, load_tokenizer(source if tokenizer is None else tokenizer)


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The autocast precision, None for none."""
    choices = {"None": None, "float32": None, "bfloat16": torch.bfloat16}
    name = str(dtype).removeprefix("torch.")
    if name not in choices:
        raise ConfigurationError(f"dtype must be 'float32' or 'bfloat16', not {dtype!r}.")
    return choices[name]


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature > 0:
        raise ConfigurationError(f"temperature must be positive, not {temperature}.")
    if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
        raise ConfigurationError(f"top_k is a whole number of at least 1, or None for all tokens, not {top_k!r}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigurationError(f"top_p is above 0 and at most 1, or None for all tokens, not {top_p!r}.")


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
    if not keys >= OBSERVATION_KEYS or not isinstance(action_space, spaces.Discrete):
        raise ConfigurationError(
            "a language-model policy needs a token environment: a Dict observation with "
            f"{', '.join(sorted(OBSERVATION_KEYS))} and Discrete actions, not {observation_space} and {action_space}."
        )


def _check_fit(model: CausalLM, n_actions: int, max_context: int, whose: str) -> None:
    width = int(unwrapped(model).get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    if width < n_actions:
        raise TokenizerError(
            f"the environment's tokenizer has {n_actions} entries and {whose} head only {width}; "
            "make the environment with the model's own tokenizer."
        )
    _check_positions(model.config, max_context, whose)


def _check_value_fit(trunk: Any, source: Any, n_actions: int, max_context: int) -> None:
    n_embeddings = int(trunk.get_input_embeddings().weight.shape[0])
    if n_embeddings < n_actions:
        raise TokenizerError(
            f"the environment's tokenizer has {n_actions} entries and the value model only {n_embeddings} "
            f"(value={type(source).__name__ if isinstance(source, PretrainedConfig) else str(source)!r}); give a value "
            "model with the policy's own tokenizer, whose ids it reads."
        )
    _check_positions(trunk.config, max_context, "the value model's")


def _check_positions(config: Any, max_context: int, whose: str) -> None:
    positions = positions_of(config)
    if positions is not None and positions < max_context:
        raise ConfigurationError(
            f"the environment's max_context is {max_context} tokens and {whose} only {positions}; "
            f"make the environment with max_context={positions} or less."
        )
