"""What a training run depends on: its settings, and the environments, the model and the reward that they name."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import get_device
from torch import nn
from transformers import AutoConfig

import textgym
from textgym.adapters import base_of_folder
from textgym.agents.language_model import positions_of
from textgym.agents.policies import CausalLMPolicy, builtin_model_path
from textgym.agents.ppo import PPO
from textgym.agents.seq2seq import policy_class_of
from textgym.errors import ConfigurationError, ModelError, did_you_mean
from textgym.rewards import as_reward
from textgym.setting import MAX_CONTEXT
from textgym.task import Task
from textgym.vector_env import TokenVectorEnv

__all__ = ["DEFAULTS", "LinearDecay", "Settings", "freeze", "load_object", "load_policy", "load_reward", "make_env"]

DEFAULTS: dict[str, Any] = {
    "total_timesteps": 100_000,
    "env.num_envs": 64,
    "teach.share": 0.0,
    "teach.epochs": 60,
    "teach.batch_size": 32,
    "teach.learning_rate": 5e-4,
    "teach.probes": 10,
    "teach.metric": "accuracy",
    "warm_start.epochs": 3,
    "warm_start.batch_size": 32,
    "warm_start.learning_rate": 1e-5,
    "warm_start.keep_best": True,
    "ppo.n_episodes": 256,
    "ppo.batch_size": 512,
    "ppo.n_epochs": 2,
    "ppo.learning_rate": 1e-5,
    "ppo.learning_rate_decay": True,
    "ppo.freeze": "",
    "ppo.gamma": 1.0,
    "ppo.kl_coef": 0.05,
    "reward.max_failed_share": 0.2,
    "validation.evaluations": 20,
    "validation.episodes": 512,
    "validation.metric": "reward",
    "test.examples": 100,
}
"""For a language model of any size; a task's ``recipe`` has what suits the built-in one."""

GIVEN = {
    *("policy", "env", "seed", "device", "policy_kwargs", "_init_setup_model"),
    *("observation_space", "action_space", "lr_schedule", "model", "dtype"),
    *("examples", "validation", "folder", "on_step"),
}
"""Arguments that a run gives by itself."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on.

    Args:
        env: The environment's id.
        model: A name or path; None: the built-in model.
        data: A file or data set in place of the task's own.
        columns: How to read it, see :func:`textgym.load_samples`.
        reward: ``"module:function"``, or a reward's, in place of the task's own.
        seed: Of everything.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: ``"bfloat16"``: compute under autocast.
        warm_start: Whether there is one.
        options: By ``"section.name"``: ``total_timesteps``; ``env.``: arguments of the environment; ``teach.``: of the
            teaching; ``warm_start.``: of :func:`~textgym.agents.warm_start.imitate`; ``ppo.``: of
            :class:`~textgym.agents.PPO`; ``policy.``: of :class:`~textgym.agents.CausalLMPolicy`; ``validation.``:
            of the model selection. ``reward.max_failed_share``: a rollout or an evaluation of which a larger share of
            episodes could not be scored stops the run, saved. ``ppo.freeze`` is a regular expression: the language
            model's parameters in whose names it is found keep their values in PPO. With ``warm_start.keep_best`` the
            warm start ends with the weights of the epoch with the lowest loss on the validation split's
            demonstrations, if it has any. What is left out comes from the task's recipe, where the model is the
            built-in one, and from ``DEFAULTS``.
    """

    env: str
    model: str | None = None
    data: str | None = None
    columns: Mapping[str, str] | Sequence[Mapping[str, str]] | str | None = None
    reward: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    warm_start: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def complete(self, task: Task) -> Settings:
        """With every option that was left out.

        Raises:
            ConfigurationError: There is no such option, or its value is of the wrong kind.
        """
        recipe = dict(task.recipe) if self.model is None else {}
        options = {**DEFAULTS, **recipe, **self.options}
        for name, value in options.items():
            _check_option(name, value)
        return replace(self, options=options)

    def section(self, name: str) -> dict[str, Any]:
        """The options of a section, without its name."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.options.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class LinearDecay:
    """A schedule of SB3's form that falls to zero at the end of training, and stays there.

    The last rollout may end after the last step that was asked for, where SB3's progress remaining is negative.
    """

    initial: float

    def __call__(self, progress_remaining: float) -> float:
        """The value at this progress, which goes from 1 to 0 or less."""
        return self.initial * max(0.0, progress_remaining)


def _check_option(name: str, value: Any) -> None:
    from textgym.agents.warm_start import imitate  # brings transformers' Trainer, which takes long

    section, dot, _ = name.partition(".")
    known = {default for default in DEFAULTS if default.partition(".")[0] == section}
    functions: dict[str, Any] = {"ppo": PPO, "policy": CausalLMPolicy, "warm_start": imitate, "teach": imitate}
    if section in functions:
        parameters = inspect.signature(functions[section]).parameters.keys() - GIVEN
        known |= {f"{section}.{parameter}" for parameter in parameters}
    if name not in known and not (dot and section == "env"):
        raise ConfigurationError(f"there is no setting {name!r}. {did_you_mean(name, {*DEFAULTS, *known})}".rstrip())
    default = DEFAULTS.get(name)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigurationError(f"the setting {name!r} is true or false, not {value!r}.")
    elif isinstance(default, (int, float)) and not isinstance(value, (int, float)):
        raise ConfigurationError(f"the setting {name!r} is a number, such as {default!r}, not {value!r}.")
    if name == "reward.max_failed_share" and not 0 <= value <= 1:
        raise ConfigurationError(f"the setting {name!r} is a share, from 0 to 1, not {value!r}.")
    if name.endswith("_kwargs") and not isinstance(value, Mapping | None):
        raise ConfigurationError(f"the setting {name!r} is a dict, such as {{'eps': 1e-5}}, not {value!r}.")


def make_env(settings: Settings, split: str, tokenizer: str | None = None) -> TokenVectorEnv:
    """The environments of a run about one split, with the tokenizer of its model or another one.

    Raises:
        TextGymError: They cannot be made.
    """
    options: dict[str, Any] = {"num_envs": DEFAULTS["env.num_envs"], **settings.section("env")}
    for name, value in (
        ("data", settings.data),
        ("columns", settings.columns),
        ("tokenizer", tokenizer or settings.model),
    ):
        if value is not None:
            options.setdefault(name, value)
    if settings.model is not None:
        options.setdefault("max_context", _max_context(settings.model))
    if settings.reward is not None:
        options["reward"] = load_reward(settings.reward)
    venv = textgym.make_vec(settings.env, split=split, **options)
    if not isinstance(venv.unwrapped, TokenVectorEnv):
        raise ConfigurationError(f"{settings.env!r} is no environment of textgym's; see `textgym list`.")
    return venv.unwrapped


def _max_context(model: str) -> int:
    """What the model has positions for, and at most the environments' own default."""
    try:
        config = AutoConfig.from_pretrained(base_of_folder(model) or model)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"there is no model {model!r}: no folder of this name holds one, and none could be had from the hub "
            f"({str(error).splitlines()[0]})."
        ) from error
    return min(MAX_CONTEXT, positions_of(config) or MAX_CONTEXT)


def load_policy(settings: Settings, venv: TokenVectorEnv, saved: Path | None = None) -> CausalLMPolicy:
    """The run's model, or the one saved in a folder, as a policy for the environments."""
    source = saved or settings.model or builtin_model_path()
    policy = policy_class_of(source)(
        venv.single_observation_space,
        venv.single_action_space,
        lambda _: 0.0,
        model=source,
        dtype=settings.dtype,
        **settings.section("policy"),
    )
    policy.tokenizer = venv.tokenizer
    return policy.to(get_device(settings.device))


def freeze(model: nn.Module, pattern: str) -> None:
    """Keeps training from changing the parameters in whose name the regular expression is found.

    Raises:
        ConfigurationError: It is found in none or in all of them, or is no regular expression.
    """
    if not pattern:
        return
    try:
        frozen = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise ConfigurationError(f"ppo.freeze={pattern!r} is no regular expression: {error}.") from error
    if not 0 < len(frozen) < sum(1 for _ in model.parameters()):
        names = ", ".join(name for name, _ in list(model.named_parameters())[:4])
        raise ConfigurationError(f"ppo.freeze={pattern!r} freezes {len(frozen)} parameters; they are {names} ...")
    for parameter in frozen:
        parameter.requires_grad_(False)


def load_reward(name: str) -> Any:
    """The reward that ``"module:function"`` names; modules are also looked for in the current folder.

    Raises:
        ConfigurationError: There is none of that name.
        RewardError: It is no reward.
    """
    return as_reward(load_object(name, "reward"))


def load_object(name: str, what: str) -> Any:
    """What ``"module:name"`` names; modules are also looked for in the current folder.

    Args:
        name: With dots for what is inside of it.
        what: It should be, for the error.

    Raises:
        ConfigurationError: There is none of that name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"the {what} is named as 'module:name', not {name!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigurationError(f"cannot import the module of the {what} {name!r}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"the module {module!r} has no {attribute!r}.")
        found = getattr(found, part)
    return found
