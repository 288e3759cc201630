"""Libraries that draw from the global random generators, warn and print, kept from doing so to others."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stdout
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np

from textgym.errors import ConfigurationError, did_you_mean

__all__ = ["Containment", "known_name", "optional_package"]


class Containment:
    """Within it Python's and NumPy's global random generators are private ones, and warnings and prints are swallowed.

    Their states are kept from one use to the next; outside, the global generators are as if nothing had been drawn.
    What is global belongs to the process: neither enter it twice at a time nor from several threads.

    Args:
        seed: Of the private generators, 0 to 2**32 - 1.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Starts the private generators again."""
        self._inside: tuple[Any, Any] = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())

    def __enter__(self) -> None:
        self._outside = _global_states()
        self._exits = ExitStack()
        self._exits.enter_context(redirect_stdout(io.StringIO()))
        self._exits.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        _set_global_states(self._inside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = _global_states()
        _set_global_states(self._outside)
        self._exits.close()


def optional_package(module: str, extra: str) -> Any:
    """The imported module; importing it leaves the global generators alone.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        with Containment():
            return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"this wrapper needs the package {module.partition('.')[0]}: pip install 'textgym[{extra}]'. ({error})"
        ) from error


def known_name(name: str, names: Iterable[str], what: str) -> str:
    """The name itself.

    Raises:
        ConfigurationError: It is none of the names; the message has the closest ones, or all.
    """
    names = sorted(names)
    if name in names:
        return name
    hint = did_you_mean(str(name), names) or f"There are {', '.join(map(repr, names))}."
    raise ConfigurationError(f"there is no {what} {name!r}. {hint}")


def _global_states() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _set_global_states(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
