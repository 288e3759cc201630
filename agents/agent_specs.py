"""Agents by name, for the command line and for files: ``"random"``, a model's folder, ``{"type": "openai", ...}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textgym.agent import Agent, check_agent
from textgym.agents.baselines import AlwaysAbstain, BestOfN, CausalLMAgent, RandomAgent, ReferenceAgent
from textgym.agents.openai_agent import OpenAIAgent
from textgym.agents.run_settings import load_object, load_reward
from textgym.errors import ConfigurationError, did_you_mean

__all__ = ["TYPES", "make_agent"]

TYPES: dict[str, Callable[..., Agent]] = {
    "random": RandomAgent,
    "abstain": AlwaysAbstain,
    "reference": ReferenceAgent,
    "model": CausalLMAgent,
    "best-of-n": BestOfN,
    "openai": OpenAIAgent,
}
"""What ``type`` may be in a mapping; the other keys are the arguments."""

BUILTIN = "builtin"
_BEST_OF = re.compile(r"best-of-(\d+):(.+)")
_OPENAI = re.compile(r"openai:(.+)@(https?://.+)")
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def make_agent(spec: str | Path | Mapping[str, Any]) -> Agent:
    """The agent that a text, a model's folder or a mapping stands for.

    A text is ``random``, ``abstain``, ``reference``, ``builtin`` (the built-in model), a model's folder or name,
    ``best-of-8:AGENT`` (a model then replies at random, and the reward by which it is judged chooses),
    ``openai:MODEL@http://localhost:8000/v1``, or ``module:name`` of an agent, or of what makes one. A mapping has the
    ``type`` (``TYPES``) and its arguments; an ``agent`` among them is a spec too, and a ``reward`` is
    ``"module:function"``.

    Args:
        spec: The text or mapping.

    Raises:
        ConfigurationError: It stands for none, or an argument is wrong.
        ModelError: There is no such model.
    """
    if isinstance(spec, Mapping):
        return _from_mapping(dict(spec))
    if isinstance(spec, Path):
        return CausalLMAgent(spec)
    if not isinstance(spec, str):
        raise ConfigurationError(f"an agent is given as a text or a table with its type, not {spec!r}.")
    if spec in ("random", "abstain", "reference"):
        return TYPES[spec]()
    if best_of := _BEST_OF.fullmatch(spec):
        return BestOfN(_sampling(best_of[2]), n=int(best_of[1]))
    if openai := _OPENAI.fullmatch(spec):
        return OpenAIAgent(openai[2], openai[1])
    if _OBJECT.fullmatch(spec) and not Path(spec).exists():
        return _made(spec)
    return CausalLMAgent(None if spec == BUILTIN else spec)


def _made(spec: str) -> Agent:
    """The agent that ``module:name`` names, or what comes of calling it."""
    found = load_object(spec, "agent")
    if callable(getattr(found, "act", None)) and not isinstance(found, type):
        return found
    try:
        agent = found()
        check_agent(agent)
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{spec!r} is no agent, and none comes of calling it: {error}") from error
    return agent


def _sampling(spec: str | Mapping[str, Any]) -> Agent:
    """The agent, a model replying at random unless it is said how."""
    agent = make_agent(spec)
    if isinstance(agent, CausalLMAgent) and not (isinstance(spec, Mapping) and "deterministic" in spec):
        agent.deterministic = False
    return agent


def _from_mapping(arguments: dict[str, Any]) -> Agent:
    kind = arguments.pop("type", None)
    if not isinstance(kind, str) or kind not in TYPES:
        raise ConfigurationError(
            f"an agent's type is one of {', '.join(TYPES)}, not {kind!r}. {did_you_mean(str(kind), TYPES)}".rstrip()
        )
    if "agent" in arguments:
        arguments["agent"] = _sampling(arguments["agent"])
    if isinstance(arguments.get("reward"), str):
        arguments["reward"] = load_reward(arguments["reward"])
    try:
        return TYPES[kind](**arguments)
    except TypeError as error:
        raise ConfigurationError(f"an agent of type {kind!r} cannot be made of {arguments!r}: {error}.") from error
