"""Every exception that textgym raises on purpose.

TextGymError
├── DataError                 a data source, row or column is unusable               (also ValueError)
├── UnknownEnvironmentError   no such environment id                                 (also KeyError)
├── ConfigurationError        an argument, or a combination of arguments, is wrong   (also ValueError)
│   ├── TokenizerError        the tokenizer does not fit the model or the task
│   └── PromptTooLongError    a prompt leaves no room for a reply in the context
├── RewardError               a reward is not a reward, or cannot be combined        (also ValueError)
├── ModelError                a model cannot be found or loaded                      (also ValueError)
├── CheckpointError           a saved agent is cut off, or not one of ours           (also ValueError)
└── EnvironmentCheckError     ``check_env`` found a broken promise                   (also AssertionError)

TextGymWarning: something works, but not as one may think                             (a UserWarning)

A reward that fails *while scoring* raises nothing: its score is marked (see :class:`textgym.Score`).
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "EnvironmentCheckError",
    "ModelError",
    "PromptTooLongError",
    "RewardError",
    "TextGymError",
    "TextGymWarning",
    "TokenizerError",
    "UnknownEnvironmentError",
    "did_you_mean",
]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``"Did you mean 'a' or 'b'?"``, up to three of the names that are like this one; empty if none is."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else ""


class TextGymError(Exception):
    """Base of all of textgym's own exceptions."""


class TextGymWarning(UserWarning):
    """Something works, but not as one may think."""


class DataError(TextGymError, ValueError):
    """A data source is missing, empty or malformed; the message names file, line and column."""


class UnknownEnvironmentError(TextGymError, KeyError):
    """No environment is registered under this id."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigurationError(TextGymError, ValueError):
    """An argument, or a combination of arguments, cannot work."""


class TokenizerError(ConfigurationError):
    """The tokenizer cannot be loaded, or does not fit the model or the task."""


class PromptTooLongError(ConfigurationError):
    """A prompt leaves no room for a single reply token in the context."""


class RewardError(TextGymError, ValueError):
    """Something given as a reward is none, or rewards cannot be combined as asked."""


class ModelError(TextGymError, ValueError):
    """A model cannot be found or loaded."""


class CheckpointError(TextGymError, ValueError):
    """A saved agent cannot be read: cut off, or written by something else."""


class EnvironmentCheckError(TextGymError, AssertionError):
    """An environment breaks a promise of the textgym interface."""
