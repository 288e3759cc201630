"""Names for environments: register, make, make_vec.

Tasks are registered by import string or factory and built at ``make``. Task and reward live in the closure of an entry
point and never in ``EnvSpec.kwargs``, which Gymnasium deep-copies at every ``make``.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from textgym.data import DataTask
from textgym.errors import ConfigurationError, TextGymWarning, UnknownEnvironmentError, did_you_mean
from textgym.rewards import Reward
from textgym.task import Task
from textgym.text_env import TextEnv
from textgym.token_env import TokenEnv
from textgym.vector_env import TokenVectorEnv

__all__ = ["ENTRY_POINT_GROUP", "make", "make_vec", "register", "registered_ids"]

ENTRY_POINT_GROUP = "textgym.envs"
BUILTIN = {
    "textgym/Classification-v0": "textgym.envs.classification:Classification",
    "textgym/Code-v0": "textgym.envs.code:Code",
    "textgym/Copy-v0": "textgym.envs.toys:Copy",
    "textgym/CreativeWriting-v0": "textgym.envs.creative_writing:CreativeWriting",
    "textgym/Dialogue-v0": "textgym.envs.dialogue:Dialogue",
    "textgym/DialogueReply-v0": "textgym.envs.dialogue_reply:DialogueReply",
    "textgym/GroundedQA-v0": "textgym.envs.grounded_qa:GroundedQA",
    "textgym/Identity-v0": "textgym.envs.toys:Identity",
    "textgym/Increasing-v0": "textgym.envs.toys:Increasing",
    "textgym/KnowledgeQA-v0": "textgym.envs.knowledge_qa:KnowledgeQA",
    "textgym/Math-v0": "textgym.envs.word_problems:Math",
    "textgym/SentimentContinuation-v0": "textgym.envs.sentiment_continuation:SentimentContinuation",
    "textgym/Summarization-v0": "textgym.envs.summarization:Summarization",
    "textgym/Translation-v0": "textgym.envs.translation:Translation",
}
GYMNASIUM_ARGUMENTS = (
    "reward_threshold",
    "nondeterministic",
    "max_episode_steps",
    "order_enforce",
    "disable_env_checker",
)

_registered: set[str] = set()


def register(
    id: str,
    task: Any,
    reward: Reward | Callable[..., Any] | None = None,
    **defaults: Any,
) -> None:
    """Registers a task with Gymnasium, at token and at turn level and as a vector environment.

    ``gymnasium.make(id)``, ``gymnasium.make(id, level="turn")``, ``gymnasium.make_vec(id)``, :func:`make` and
    :func:`make_vec` then make it. Keyword arguments given there override the defaults given here.

    Args:
        id: ``namespace/Name-v0``.
        task: A :class:`~textgym.Task` subclass, instance or factory; an import string ``"package.module:Name"`` of one;
            or a data source, see :func:`textgym.data.load_samples`. Nothing is imported, read or built before ``make``.
        reward: A reward or a plain function; the task's own where None.
        **defaults: Arguments of the environment (``split``, ``tokenizer``, ``max_new_tokens``, ``max_context``,
            ``format``), of the data (``data``, which replaces the task's own, and ``columns``), of the task, and of
            ``gymnasium.register`` (``max_episode_steps``, ``reward_threshold`` and so on).
    """
    for_gymnasium = {name: defaults.pop(name) for name in GYMNASIUM_ARGUMENTS if name in defaults}
    defaults = {"reward": reward, **defaults}

    def make_env(*, level: str = "token", **kwargs: Any) -> gymnasium.Env:
        environments = {"token": TokenEnv, "turn": TextEnv}
        if level not in environments:
            raise ConfigurationError(f"level={level!r}; it is 'token' or 'turn'.")
        return _build(environments[level], id, task, {**defaults, **kwargs})

    def make_vector_env(**kwargs: Any) -> VectorEnv:
        level = kwargs.pop("level", "token")
        if level != "token":
            raise ConfigurationError(
                f"level={level!r}: only token level has a vector form; use vectorization_mode='sync'."
            )
        return _build(TokenVectorEnv, id, task, {**defaults, **kwargs})

    gymnasium.register(id, entry_point=make_env, vector_entry_point=make_vector_env, **for_gymnasium)
    _registered.add(id)


def make(id: str, **kwargs: Any) -> gymnasium.Env:
    """Makes one environment, as ``gymnasium.make`` does.

    Args:
        id: What it is registered under.
        **kwargs: ``level="turn"`` for text in and text out; what ``gymnasium.make`` takes; and overrides of the
            defaults of :func:`register`.

    Raises:
        UnknownEnvironmentError: There is no such id.
        ConfigurationError: The environment or the task takes no such argument.
    """
    return gymnasium.make(_known(id), **kwargs)


def make_vec(id: str, num_envs: int = 1, **kwargs: Any) -> VectorEnv:
    """Makes a :class:`~textgym.TokenVectorEnv`, as ``gymnasium.make_vec`` does.

    Args:
        id: What it is registered under.
        num_envs: How many environments.
        **kwargs: ``copy=False`` for observations that are views; what ``gymnasium.make_vec`` takes; and overrides of
            the defaults of :func:`register`.

    Raises:
        UnknownEnvironmentError: There is no such id.
        ConfigurationError: The environment or the task takes no such argument.
    """
    return gymnasium.make_vec(_known(id), num_envs=num_envs, **kwargs)


def registered_ids() -> list[str]:
    """The ids of every task registered with :func:`register`, sorted."""
    return sorted(_registered & gymnasium.registry.keys())


def _known(id: str) -> str:
    if id in gymnasium.registry or ":" in id:  # "module:Name-v0" imports the module first
        return id
    ids = registered_ids()
    hint = did_you_mean(id, ids) or f"There are {', '.join(map(repr, ids))}."
    raise UnknownEnvironmentError(f"no environment is registered as {id!r}. {hint}")


def _build(environment: Callable[..., Any], id: str, task: Any, arguments: dict[str, Any]) -> Any:
    """The environment, its arguments told from those of the task."""
    names = inspect.signature(environment).parameters
    for_environment = {name: arguments.pop(name) for name in list(arguments) if name in names and name != "task"}
    return environment(_build_task(id, task, arguments), **for_environment)


def _build_task(id: str, task: Any, arguments: dict[str, Any]) -> Task:
    data = {name: arguments.pop(name) for name in ("data", "columns") if arguments.get(name) is not None}
    factory = _factory(task)
    if isinstance(factory, Task):
        _refuse_unknown(id, arguments, ())
        return _with_data(copy.copy(factory), data)
    if not callable(factory):
        return _called(DataTask, id, {"data": factory, **data, **arguments})
    if "data" in inspect.signature(factory).parameters:
        return _called(factory, id, {**data, **arguments})
    return _with_data(_called(factory, id, arguments), data)


def _factory(task: Any) -> Any:
    """What an import string stands for; anything else as it is."""
    if isinstance(task, str) and all(part.isidentifier() for part in task.replace(":", ".").split(".")) and ":" in task:
        module, _, name = task.partition(":")
        return getattr(import_module(module), name)
    return task


def _called(factory: Callable[..., Any], id: str, arguments: dict[str, Any]) -> Task:
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(id, arguments, tuple(parameters))
    task = factory(**arguments)
    if not isinstance(task, Task):
        raise ConfigurationError(f"the factory of {id} made {task!r}, which is no textgym.Task.")
    return task


def _refuse_unknown(id: str, arguments: Mapping[str, Any], accepted: tuple[str, ...]) -> None:
    unknown = [name for name in arguments if name not in accepted]
    if unknown:
        own = [name for name in inspect.signature(TokenEnv).parameters if name != "task"]
        raise ConfigurationError(
            f"{id} takes no argument {', '.join(map(repr, unknown))}; the environment takes {', '.join(own)}, data and "
            f"columns, and its task {', '.join(accepted) or 'nothing'}."
        )


def _with_data(task: Task, data: dict[str, Any]) -> Task:
    """The task, with its samples replaced where data are given."""
    if "data" in data:
        setattr(task, "samples", DataTask(**data).samples)  # noqa: B010 (mypy forbids to assign a method)
    elif data:
        raise ConfigurationError(f"columns={data['columns']!r} without data: they say how to read data=...")
    return task


def register_builtin_and_plugins() -> None:
    """Registers the built-in tasks, and those of other distributions, without importing any of them.

    A distribution names its tasks in its entry-point group ``textgym.envs``: the name is the id, the value the task.
    """
    for id, task in BUILTIN.items():
        register(id, task)
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(plugin.name, plugin.value)
        except (gymnasium.error.Error, ValueError) as error:  # must not keep textgym from being imported
            warnings.warn(
                f"the entry point {plugin.name!r} of {ENTRY_POINT_GROUP} is no id: {error}",
                TextGymWarning,
                stacklevel=2,
            )
