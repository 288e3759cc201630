"""The sandbox: runs programs that nobody vouches for, with tests that they cannot forge.

A program is run by :mod:`textgym.sandbox_worker`, a process that is enclosed before it sees any of it, by all of:

- *Files*: Landlock allows reading the system's and Python's libraries, and writing into an empty folder of its own.
- *Everything else*: seccomp allows the system calls of a computation. No process, no thread, no socket, no signal, no
  look at another process.
- *Rights*: started by root it becomes an unused user first; it has no capabilities and cannot get any.
- *Amounts*: limits on time, memory, files and results, see :class:`Limits`; what is printed goes nowhere.
- *Namespaces*, where the system allows them: bubblewrap's where it is installed, else the worker's own, without a
  network, and with the folder as a small file system of its own.

A program and its tests run in two processes, of which only the tests' one is told what values are expected. So all that
a program can do to pass is to return the right values: what it does to ``check``, to the built-ins, to its exit code or
to what it prints reaches no test.

What it does not protect against: faults of the kernel and of the processor (side channels); many programs that together
use up the machine, each within its limits; where there are no namespaces, a disk filled with many small files within
the limit of time; a program that reads the libraries, the clock, or the machine's name; and a program that finds out
the right values, such as one that knows the tests by heart. Tests given as a program are enclosed like replies, but
whether they passed is for them to say: take them from where you trust them to be right.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from textgym.errors import ConfigurationError, DataError, TextGymError

__all__ = ["Job", "Limits", "Outcome", "Sandbox", "Status", "protections"]

Status = Literal["passed", "failed", "error", "syntax_error", "timeout", "killed"]
WAYS = ("bubblewrap", "namespaces", "landlock")
SCRIPT = Path(__file__).with_name("sandbox_worker.py")
FOLDER_IN_BUBBLEWRAP, HOME_IN_BUBBLEWRAP = "/replies", "/python"  # at the top: it shuts the folders above deeper ones
PATIENCE = 60.0  # seconds, for a worker to start and to end a job
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What a program may use, for all of its tests together.

    Args:
        seconds: Of wall time.
        cpu_seconds: Of processor time, in whole seconds.
        memory_bytes: Of address space, of which Python itself takes some 50 MiB.
        output_bytes: Of one result.
        file_bytes: Of one file.
        folder_bytes: Of all its files, where the system allows namespaces.
        open_files: At the same time.

    Raises:
        ConfigurationError: One of them is no such number, or too small for Python itself.
    """

    seconds: float = 10.0
    cpu_seconds: int = 3
    memory_bytes: int = 512 * MIB
    output_bytes: int = MIB
    file_bytes: int = MIB
    folder_bytes: int = 16 * MIB
    open_files: int = 64

    def __post_init__(self) -> None:
        least = {"seconds": 0.05, "memory_bytes": 128 * MIB, "open_files": 32}
        for name, value in asdict(self).items():
            kinds = (int, float) if name == "seconds" else int
            if not isinstance(value, kinds) or not value >= least.get(name, 1):
                what = "a number" if name == "seconds" else "a whole number"
                raise ConfigurationError(f"{name}={value!r}; it is {what}, at least {least.get(name, 1)}.")


class Outcome(NamedTuple):
    """What came of one test.

    Args:
        status: ``"passed"``; ``"failed"``: a wrong value; ``"error"``: the program raised, or returned what is no
            plain data; ``"syntax_error"``; ``"timeout"``; ``"killed"``: its process ended in any other way.
        reason: Why it did not pass.
    """

    status: Status
    reason: str = ""


class Job(NamedTuple):
    """A program and the tests of one of its functions.

    Args:
        program: Python source.
        entry_point: The function's name.
        tests: Pairs of a list of arguments and the value that is right (by ``==``), both plain data, see
            :func:`textgym.sandbox_worker.encode`; or the source of a program that defines ``check(candidate)``, which
            raises where the function is wrong, and counts as one test. That program has a namespace of its own, where
            the entry point is ``candidate`` too, which calls the function with plain data and returns plain data.
    """

    program: str
    entry_point: str
    tests: str | Sequence[tuple[Sequence[Any], Any]]


class Sandbox:
    """Runs jobs in worker processes, which are started where they are missed and used again.

    It may be used from several threads, each of which keeps a worker busy; a copy in another process (``fork``,
    ``pickle``) has workers of its own there. Workers end with the process that started them.

    Args:
        limits: Of every job.

    Raises:
        ConfigurationError: The system cannot provide the sandbox, see :func:`protections`.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        protections()

    def run(self, job: Job) -> list[Outcome]:
        """What came of each test, in their order.

        Raises:
            DataError: There are no tests, or they cannot be run, whatever the program.
            TextGymError: The sandbox itself broke down.
        """
        idle = _idle_workers(self.limits, os.getpid())
        worker = _taken_from(idle) or _new_worker(self.limits)
        try:
            return worker.run(job)
        finally:
            if worker.is_usable:
                idle.append(worker)
            else:
                worker.close()


@cache
def protections() -> Mapping[str, Any]:
    """What the sandbox is made of on this system, found out once, by trying.

    ``way``: ``"bubblewrap"``, ``"namespaces"`` (its own) or ``"landlock"`` (neither of the two). ``landlock``: its
    version, 0 for none. ``user``: the id that programs run under. The seccomp filter and the limits are always there.

    Raises:
        ConfigurationError: The system cannot provide the sandbox; the message says what is missing. Nothing is ever run
            without it.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigurationError(
            f"the sandbox for generated code needs Linux, not {sys.platform!r}, and runs nothing unprotected: use a "
            "Linux container or virtual machine (Docker, WSL 2)."
        )
    problems = []
    for way in WAYS:
        try:
            worker = _Worker(Limits(), way)
        except _CannotStartError as error:
            problems.append(f"{way}: {error}")
        else:
            worker.close()
            return worker.protections
    raise ConfigurationError(
        "the sandbox for generated code cannot be had here, and it runs nothing unprotected. It needs Linux 5.13 or "
        "later on x86_64 or aarch64, with seccomp, and with Landlock (in /sys/kernel/security/lsm; a container's own "
        "seccomp profile must allow it) or bubblewrap (apt install bubblewrap). What was tried: "
        f"{'; '.join(problems)}."
    )


@cache
def _idle_workers(limits: Limits, process: int) -> deque[_Worker]:
    return deque()


def _taken_from(idle: deque[_Worker]) -> _Worker | None:
    with contextlib.suppress(IndexError):  # another thread may have taken the last one
        while True:
            worker = idle.pop()
            if worker.is_alive:
                return worker
            worker.close()
    return None


def _new_worker(limits: Limits) -> _Worker:
    try:
        return _Worker(limits, protections()["way"])
    except _CannotStartError as error:
        raise TextGymError(f"the sandbox could not start a worker: {error}") from error


class _CannotStartError(Exception):
    """A worker cannot be started, or not be enclosed."""


class _Worker:
    """The parent's end of a worker process, which runs one job at a time."""

    def __init__(self, limits: Limits, way: str) -> None:
        self.limits = limits
        self.is_usable = True
        folder = tempfile.mkdtemp(prefix="textgym-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _start(limits, way, folder, theirs)
        except (OSError, _CannotStartError) as error:
            self._control.close()
            os.rmdir(folder)
            raise _CannotStartError(str(error)) from error
        self.close = weakref.finalize(self, _end_worker, os.getpid(), self._process, self._control, folder)
        self.protections = self._welcome()

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def run(self, job: Job) -> list[Outcome]:
        """What came of each test; after it ``is_usable`` says whether there can be another job."""
        tests = _encoded(job)
        count = 1 if isinstance(job.tests, str) else len(job.tests)
        deadline = time.monotonic() + self.limits.seconds
        self.is_usable = False  # until the job has ended as it should
        reports, theirs = socket.socketpair()
        with reports:
            with theirs, _file(job.program) as program, _file(tests) as tests_file:
                descriptors = [file.fileno() for file in (program, tests_file, theirs)]
                socket.send_fds(self._control, [json.dumps(job.entry_point).encode()], descriptors)
            try:
                started = self._hear(deadline)
            except TimeoutError:
                return [Outcome("timeout", f"was not compiled within {self.limits.seconds:g} seconds")] * count
            except ConnectionError:
                return [Outcome("killed", "the compiler crashed")] * count
            if "broke_down" in started:
                raise TextGymError(f"the sandbox could not start a process: {started['broke_down']}")
            if "syntax_error" in started:
                self.is_usable = True
                return [Outcome("syntax_error", started["syntax_error"])] * count
            outcomes, is_late = _reported(reports, count, deadline)
        rest = self._end_of_job(is_late)
        if outcomes and outcomes[-1].status == "broken":
            raise DataError(f"the tests cannot be run: {outcomes[-1].reason}")
        return [*outcomes, *[rest] * (count - len(outcomes))]

    def _end_of_job(self, is_late: bool) -> Outcome:
        """What came of the tests that have reported nothing."""
        try:
            self._control.send(b".")
            ended = self._hear(time.monotonic() + PATIENCE)
        except OSError as error:
            raise TextGymError(f"the sandbox's worker did not end a job: {error or 'it did not answer'}") from error
        self.is_usable = ended["emptied"]
        if is_late:
            return Outcome("timeout", f"took more than {self.limits.seconds:g} seconds")
        for process in ended["processes"]:
            if process["exit"] == -signal.SIGXCPU or process["cpu_seconds"] >= self.limits.cpu_seconds:
                return Outcome("timeout", f"took more than {self.limits.cpu_seconds} seconds of processor time")
        status = ended["processes"][0]["exit"]
        if status == -signal.SIGKILL:
            return Outcome("killed", "spoilt the channel of its results, or ran out of memory")
        how = f"with exit code {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        return Outcome("killed", f"its process ended {how}")

    def _welcome(self) -> Mapping[str, Any]:
        told: dict[str, Any]
        try:
            told = self._hear(time.monotonic() + PATIENCE)
        except OSError:
            self._process.kill()
            told = {"error": self._complaint() or "it did not start"}
        if "error" in told:
            self.close()
            raise _CannotStartError(told["error"])
        return told

    def _complaint(self) -> str:
        """The last line that the process wrote before it ended."""
        lines = self._process.communicate()[1].decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def _hear(self, deadline: float) -> dict[str, Any]:
        """The worker's next message.

        Raises:
            TimeoutError: There is none in time.
            ConnectionError: The worker is gone.
        """
        message = _receive(self._control, deadline)
        if not message:
            raise ConnectionResetError("the worker is gone")
        told: dict[str, Any] = json.loads(message)
        return told


def _receive(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(max(deadline - time.monotonic(), 1e-3))
    return connection.recv(65536)


def _reported(reports: socket.socket, count: int, deadline: float) -> tuple[list[Outcome], bool]:
    """The outcomes, up to the end or the deadline, and whether that came first."""
    data, is_late = b"", False
    try:
        while len(data) < 4096 * (count + 1) and (chunk := _receive(reports, deadline)):
            data += chunk
    except TimeoutError:
        is_late = True
    return [Outcome(*json.loads(line)) for line in data.split(b"\n")[:-1]], is_late


def _encoded(job: Job) -> str:
    """The tests as JSON."""
    from textgym.sandbox_worker import encode  # on Linux only

    if not isinstance(job.entry_point, str):
        raise DataError(f"the entry point is the name of a function, not {job.entry_point!r}.")
    if not job.tests:
        raise DataError("there are no tests.")
    if isinstance(job.tests, str):
        return json.dumps(job.tests)
    try:
        return json.dumps([encode([list(args), expected]) for args, expected in job.tests])
    except (TypeError, ValueError) as error:
        raise DataError(
            "tests are the source of a program, or pairs of a list of arguments and an expected value in plain data, "
            f"not {job.tests!r}: {error}."
        ) from error


def _file(text: str) -> BinaryIO:
    """A file in memory, at its beginning."""
    file = os.fdopen(os.memfd_create("textgym"), "w+b")
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file


def _start(limits: Limits, way: str, folder: str, control: socket.socket) -> subprocess.Popen[bytes]:
    """The worker's process."""
    owner = os.getuid() or _unused_id()
    os.chown(folder, owner, -1)
    home = os.open(sys.base_prefix, os.O_PATH)
    settings = {**asdict(limits), "control": control.fileno(), "owner": owner, "way": way}
    if way == "bubblewrap":
        settings |= {"home": HOME_IN_BUBBLEWRAP, "folder": FOLDER_IN_BUBBLEWRAP, "keep": []}
    else:  # through its descriptor it can be read even where the folders above it cannot, as in /root
        settings |= {"home": f"/proc/self/fd/{home}", "folder": folder, "keep": [home]}
    python = [os.path.realpath(sys.executable), "-S", str(SCRIPT), json.dumps(settings)]
    try:
        return subprocess.Popen(
            [*_bubblewrap(limits), *python] if way == "bubblewrap" else python,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONHOME": settings["home"], "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            cwd="/",
            pass_fds=[control.fileno(), *settings["keep"]],
            start_new_session=True,
        )
    finally:
        os.close(home)


def _end_worker(owner: int, process: subprocess.Popen[bytes], control: socket.socket, folder: str) -> None:
    if os.getpid() != owner:  # in a fork: the worker is not ours
        return
    control.close()
    if process.poll() is None:  # else its programs have died with it, and the number may be another group's
        os.killpg(process.pid, signal.SIGKILL)  # its programs are in its group
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
    shutil.rmtree(folder, ignore_errors=True)


def _bubblewrap(limits: Limits) -> list[str]:
    """What comes before the worker's command: a file system of as much as Python needs, and two places of its own."""
    program = shutil.which("bwrap")
    if program is None:
        raise _CannotStartError("it is not installed")
    python = [sys.base_prefix, os.path.realpath(sys.executable), str(SCRIPT)]
    read = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", *python]
    for_root = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [
        program,
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *(for_root if os.getuid() == 0 else []),
        *(part for path in read for part in ("--ro-bind-try", path, path)),
        *("--ro-bind", sys.base_prefix, HOME_IN_BUBBLEWRAP),
        *(part for path in ("/dev/null", "/dev/urandom") for part in ("--dev-bind", path, path)),
        *("--perms", "1777", "--size", str(limits.folder_bytes), "--tmpfs", FOLDER_IN_BUBBLEWRAP),
        *("--remount-ro", "/", "--"),
    ]


def _unused_id() -> int:
    """An id of neither a user nor a group, in the range that systemd leaves alone (its document UIDS-GIDS)."""
    import grp
    import pwd

    for number in range(60_706, 61_184):
        try:
            pwd.getpwuid(number)
        except KeyError:
            try:
                grp.getgrgid(number)
            except KeyError:
                return number
    raise _CannotStartError("every user id from 60706 to 61183 is taken")
