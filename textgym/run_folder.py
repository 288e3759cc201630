"""The folder of a training run: what is written there, so that no file is ever half written."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from textgym.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

__all__ = ["CONFIG", "EPISODES", "PROGRESS", "RESULTS", "STATE", "VALIDATION", "RunFolder", "data_sha256", "versions"]

CONFIG, STATE, RESULTS = "config.json", "state.json", "results.json"
EPISODES, PROGRESS, VALIDATION = "episodes.jsonl", "progress.csv", "validation.jsonl"
PARTIAL = ".partial"  # in the name of a file that is being written
PACKAGES = ("textgym", "torch", "transformers", "stable-baselines3", "gymnasium", "numpy", "peft")


def versions() -> dict[str, str]:
    """The versions of Python, of the packages that matter for a result, and the platform."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def data_sha256(data: str | None) -> str | None:
    """Of a data file, so that a run can be repeated with the same one."""
    if data is None or not Path(data).is_file():
        return None
    return hashlib.sha256(Path(data).read_bytes()).hexdigest()


class RunFolder:
    """A run's files. Each is replaced as a whole, so an interruption leaves the last version.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunFolder:
        """A new run in a new or empty folder.

        Raises:
            ConfigurationError: There is something in it.
        """
        cls.check_free(path)
        folder = cls(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_json(CONFIG, config)
        folder.write_json(STATE, {})
        return folder

    @staticmethod
    def check_free(path: str | os.PathLike[str]) -> None:
        """Raises ConfigurationError where something is in the folder."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(PARTIAL not in entry.suffixes for entry in path.iterdir())):
            hint = f"go on with it: --resume {path}, or " if (path / CONFIG).is_file() else ""
            raise ConfigurationError(f"{path} exists and is not empty; {hint}name another folder: --out DIR.")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The folder of a run to go on with.

        Raises:
            ConfigurationError: It holds no run.
        """
        folder = cls(path)
        for name in (CONFIG, STATE):
            if not (folder.path / name).is_file():
                raise ConfigurationError(f"{path} holds no training run: there is no {name} in it.")
        return folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process can be here, where the system can lock a folder.

        Raises:
            ConfigurationError: Another one is.
        """
        if sys.platform == "win32":
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"another process is at work in {self.path}; wait until it has ended, or name another folder."
                ) from error
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(handle)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def config(self) -> dict[str, Any]:
        """What the run was started with."""
        return self.read_json(CONFIG)

    @property
    def state(self) -> dict[str, Any]:
        """How far the run has come."""
        return self.read_json(STATE)

    def update_state(self, **values: Any) -> None:
        """Sets values of the state."""
        self.write_json(STATE, {**self.state, **values})

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object in the folder; empty where there is no such file.

        Raises:
            ConfigurationError: It is no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigurationError(f"{path} holds a {type(content).__name__}, not a JSON object.")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replaces a JSON file."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSONL file; none where there is no such file.

        Raises:
            ConfigurationError: A line is no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            return []
        with path.open("rb") as file:  # str.splitlines would also end lines at U+2028, which JSON may hold
            return [_object(line, f"{path}, line {number}") for number, line in enumerate(file, 1)]

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replaces a JSONL file."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file under another name, and gives it its own when it is whole."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.stem}{PARTIAL}{target.suffix}")
        write(temporary)
        os.replace(temporary, target)

    def cut_progress(self, timesteps: int) -> None:
        """Drops what was logged after so many steps, which is about to be logged again."""
        path = self.path / PROGRESS
        if not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if "time/total_timesteps" not in header:
            return
        column = header.index("time/total_timesteps")
        kept = [row for row in rows if row[column] and int(row[column]) <= timesteps]

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *kept])

        self.replace(PROGRESS, write)


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{place} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{place} holds a {type(found).__name__}, not a JSON object.")
    return found
