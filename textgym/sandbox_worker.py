"""The sandbox's inner side: a server that runs replies and their tests, each in a confined process of its own.

:mod:`textgym.sandbox` starts this file as a script that knows the standard library alone. It gives up the rights that
it has, then waits for jobs on a Unix socket. For a job it forks twice: one process runs the reply's program and answers
calls of its function, the other one runs the tests, which no other process of the sandbox ever reads, and calls that
function over a pair of pipes. So a reply shares no interpreter with its tests, and the only way to pass them is to
return the right values.

Sources: the manual pages landlock(7), seccomp(2), prctl(2), unshare(2), setrlimit(2) of the Linux man-pages project.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import gc
import importlib
import itertools
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any

__all__ = ["decode", "encode", "landlock_version", "main", "seccomp_filter"]

MAX_REASON = 300  # characters
LOADED = (  # what replies import most often, loaded once instead of in each of them
    "abc",
    "array",
    "bisect",
    "calendar",
    "cmath",
    "collections",
    "collections.abc",
    "copy",
    "dataclasses",
    "datetime",
    "_strptime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "struct",
    "textwrap",
    "time",
    "traceback",
    "typing",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_16",
    "unicodedata",
)
# Plain data

CONTAINERS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """Plain data as what JSON can hold and :func:`decode` reads back.

    Plain are None, bool, int, float, complex, str, bytes, and lists, tuples, sets, frozensets and dicts of them;
    subclasses (a Counter, a named tuple) lose what they have on top.

    Raises:
        TypeError: The value is something else, or holds it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(value)}
    raise TypeError(f"a {type(value).__name__} is no plain data (numbers, texts, lists, tuples, sets, dicts, None)")


def decode(value: Any) -> Any:
    """What was encoded; of built-in types alone, whatever a reply may have sent.

    Raises:
        ValueError, TypeError: This is nothing that :func:`encode` makes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, items),) = value.items()
    if name == "dict":
        return {decode(key): decode(item) for key, item in items}
    if name == "complex":
        return complex(*items)
    if name == "bytes":
        return bytes(items)
    if name in CONTAINERS:
        return CONTAINERS[name](decode(item) for item in items)
    raise ValueError(f"{name!r} is no kind of plain data")


# The two processes of a job


def run_program(code: CodeType, entry_point: str, calls: int, results: int, max_bytes: int) -> None:
    """The reply's process: runs the program, then answers each call of its function by a line.

    Args:
        code: The compiled program.
        entry_point: The name of the function.
        calls: The descriptor on which the calls come, a line each.
        results: The descriptor for the answers; the first one says whether there is such a function.
        max_bytes: Of an answer.
    """
    module = sys.modules["reply"] = ModuleType("reply")
    random.seed(0)  # a score must not depend on chance
    try:
        exec(code, module.__dict__)
        function = module.__dict__.get(entry_point)
        if not callable(function):
            raise NameError(f"the program defines no function {entry_point!r}")
    except BaseException as error:  # noqa: BLE001 (SystemExit too: whatever a program raises, it has failed)
        _write(results, _failure(error))
        return
    _write(results, _line({"value": None}))
    with os.fdopen(calls, "rb") as lines:
        for line in lines:
            args, kwargs = decode(json.loads(line))
            _write(results, _answer(function, args, kwargs, max_bytes))


def _answer(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], max_bytes: int) -> bytes:
    try:
        line = _line({"value": encode(function(*args, **kwargs))})
        if len(line) > max_bytes:
            raise ValueError(f"the result takes {len(line)} bytes, more than {max_bytes}")
    except BaseException as error:  # noqa: BLE001
        return _failure(error)
    return line


def _failure(error: BaseException) -> bytes:
    return _line({"error": [type(error).__name__, str(error)[:MAX_REASON]]})


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _write(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class ReplyEnded(BaseException):
    """The reply's process is gone or not to be understood; no ``except Exception`` of a test must catch it."""


class BrokenTests(BaseException):
    """The tests cannot be run, whatever the reply."""


class Candidate:
    """The reply's function as the tests see it: a call is sent to the reply's process.

    Args:
        calls: The descriptor for the calls.
        results: The descriptor on which the answers come.
        max_bytes: Of an answer.
    """

    def __init__(self, calls: int, results: int, max_bytes: int) -> None:
        self._calls, self._max_bytes = calls, max_bytes
        self._results = os.fdopen(results, "rb")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value, of built-in types alone.

        Raises:
            Exception: What the function raised, as the built-in exception of that name, else RuntimeError.
            ReplyEnded: There is no answer, or none that can be read.
            BrokenTests: An argument is no plain data.
        """
        try:
            call = encode([list(args), kwargs])
        except TypeError as error:
            raise BrokenTests(f"the function is called with an argument that cannot be sent: {error}") from None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            _write(self._calls, _line(call))
        return self.answer()

    def answer(self) -> Any:
        """The next answer; raises as a call does."""
        line = self._results.readline(self._max_bytes + 1)
        if len(line) > self._max_bytes or not line.endswith(b"\n"):
            raise ReplyEnded
        try:
            answer = json.loads(line)
            if "value" in answer:
                return decode(answer["value"])
            name, message = map(str, answer["error"])
        except Exception as error:  # the reply may send anything
            raise ReplyEnded from error
        raise _exception(name, message)


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some need more than a message
            return kind(message)
    return RuntimeError(f"{name}: {message}")


def run_tests(tests: Any, entry_point: str, candidate: Candidate) -> Iterator[tuple[str, str]]:
    """The tests' process: status and reason of each test, as far as it gets.

    Args:
        tests: A program that defines ``check(candidate)``, or encoded pairs of arguments and an expected value.
        entry_point: The function's name.
        candidate: The function, before its first answer.
    """
    try:
        if isinstance(tests, str):
            checks = [_check(tests, entry_point, candidate)]
        else:
            checks = [_comparison(*decode(pair)) for pair in tests]
        failure = _attempt(candidate.answer)
        for check in checks:
            yield failure or _attempt(check, candidate) or ("passed", "")
    except BrokenTests as error:
        yield "broken", str(error)
    except ReplyEnded:
        pass


def _attempt(action: Callable[..., Any], *args: Any) -> tuple[str, str] | None:
    """How it failed, None where it did not."""
    try:
        action(*args)
    except AssertionError as error:
        return "failed", str(error)[:MAX_REASON] or "an assertion failed"
    except Exception as error:  # noqa: BLE001
        return "error", f"{type(error).__name__}: {error}"[:MAX_REASON]
    return None


def _check(tests: str, entry_point: str, candidate: Candidate) -> Callable[..., Any]:
    module = sys.modules["tests"] = ModuleType("tests")
    try:
        exec(compile(tests, "<tests>", "exec", dont_inherit=True), module.__dict__)
        module.__dict__[entry_point] = candidate
        return module.__dict__["check"]
    except Exception as error:
        raise BrokenTests(f"{type(error).__name__}: {error}") from error


def _comparison(args: Sequence[Any], expected: Any) -> Callable[..., Any]:
    def compare(candidate: Callable[..., Any]) -> None:
        value = candidate(*args)
        if value != expected:
            raise AssertionError(f"for {args!r} it returned {value!r}, not {expected!r}")

    return compare


# Confinement

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 4, 38, 22, 2
CAPABILITIES_VERSION = 0x20080522
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
MAX_FILES = 64  # in the folder, where it is a file system of its own


def _system(function: str, *args: int | bytes | None) -> int:
    """Calls a function of the C library.

    Raises:
        OSError: It failed.
    """
    wide = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    result = getattr(libc, function)(*wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")
    return int(result)


def enter_namespaces(folder: str, size: int, owner: int) -> None:
    """Goes where there is no network and no shared memory of others, and the folder is a small file system of its own.

    Raises:
        OSError: The system does not allow it.
    """
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
    group = owner
    if os.getuid() == 0:
        _system("unshare", flags)
    else:
        group = os.getgid()
        _system("unshare", flags | CLONE_NEWUSER)
        maps = {"setgroups": "deny", "uid_map": f"{owner} {owner} 1", "gid_map": f"{group} {group} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _system("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    options = f"size={size},nr_inodes={MAX_FILES},mode=700,uid={owner},gid={group}"
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    _system("mount", b"textgym", os.fsencode(folder), b"tmpfs", flags, options.encode())


# Bits of access to files, and those that each version of Landlock added (the index is the version minus one).
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = 1, 2, 4, 8, 1 << 5, 1 << 8, 1 << 14
FIRST_RIGHTS = (1 << 13) - 1
ADDED_RIGHTS = {2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom")


def landlock_version() -> int:
    """The version of Landlock that the kernel offers, 0 where it offers none."""
    return max(0, libc.syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def restrict_files(folder: str, home: str) -> None:
    """From here on only the libraries can be read, and only files in the folder written, for ever.

    Args:
        folder: Where files may be made, changed and removed.
        home: Where Python is installed.

    Raises:
        OSError: The kernel refuses.
    """
    handled = FIRST_RIGHTS | sum(rights for version, rights in ADDED_RIGHTS.items() if version <= landlock_version())
    ruleset = _system("syscall", CREATE_RULESET, struct.pack("Q", handled), 8, 0)
    written = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
    rules = dict.fromkeys((*READABLE, f"{home}/lib", f"{home}/lib64"), READ_FILE | READ_DIR)
    for path, rights in {**rules, "/dev/null": READ_FILE | WRITE_FILE, folder: written}.items():
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights &= handled if os.path.isdir(path) else FOR_FILES & handled
            _system("syscall", ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, opened), 0)
            os.close(opened)
    _system("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


# The system calls that a computation needs, by number on x86_64 and on aarch64 (-1: it has no such call). None of them
# makes a process or a thread, opens a socket, sends a signal, or reaches another process; whatever is not here is
# refused. The most frequent come first. Source: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h.
# fmt: off
SYSTEM_CALLS = {
    "read": (0, 63), "write": (1, 64), "futex": (202, 98), "mmap": (9, 222), "munmap": (11, 215), "brk": (12, 214),
    "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "lseek": (8, 62), "getdents64": (217, 61),
    "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "exit_group": (231, 94), "exit": (60, 93),
    "stat": (4, -1), "lstat": (6, -1), "statx": (332, 291), "access": (21, -1), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, -1), "readlinkat": (267, 78), "getcwd": (79, 17), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "ftruncate": (77, 46), "fsync": (74, 82),
    "unlink": (87, -1), "unlinkat": (263, 35), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24), "poll": (7, -1), "ppoll": (271, 73), "select": (23, -1),
    "pselect6": (270, 72), "sched_yield": (24, 124), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, -1),
    "times": (100, 153), "getrusage": (98, 165), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128), "getrandom": (318, 278),
    "sched_getaffinity": (204, 123), "rseq": (334, 293), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "uname": (63, 160), "sysinfo": (99, 179),
}
# fmt: on
OPENING = {"openat": (257, 56, 2), "open": (2, -1, 1)}  # the third: which argument has the flags
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # the column of the table, and AUDIT_ARCH

LOAD, AND, JUMP_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, KILL_PROCESS, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES


def seccomp_filter(machine: str) -> bytes:
    """A BPF program that allows ``SYSTEM_CALLS`` and opening files, and lets every other system call fail (EACCES).

    Opening refuses to truncate what is not opened for writing, which the first versions of Landlock do not forbid.

    Args:
        machine: As ``os.uname`` names the architecture.

    Raises:
        NotImplementedError: It is none that the table knows.
    """
    if machine not in ARCHITECTURES:
        raise NotImplementedError(f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, not {machine}")
    column, audit = ARCHITECTURES[machine]
    program = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, 0)]
    for numbers in SYSTEM_CALLS.values():
        if numbers[column] >= 0:
            program += [(JUMP_EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    for opening in OPENING.values():
        if opening[column] >= 0:
            program += [
                (JUMP_EQUAL, 0, 6, opening[column]),
                (LOAD, 0, 0, 16 + 8 * opening[2]),
                (AND, 0, 0, os.O_TRUNC | os.O_ACCMODE),
                (JUMP_EQUAL, 2, 0, os.O_TRUNC | os.O_RDONLY),
                (JUMP_EQUAL, 1, 0, os.O_TRUNC | os.O_ACCMODE),  # the mode 3: neither reading nor writing
                (RETURN, 0, 0, ALLOW),
                (RETURN, 0, 0, REFUSE),
            ]
    program.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def restrict_system_calls(program: bytes) -> None:
    """Installs a filter, for ever.

    Raises:
        OSError: The kernel refuses.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    count, pointer = len(program) // 8, ctypes.addressof(instructions)
    _system("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HxxxxxxQ", count, pointer), 0, 0)


def give_up_rights(owner: int) -> None:
    """Leaves root for an unused user, and every capability; neither can be had again.

    Raises:
        OSError: The system does not allow it, and the process would go on with them.
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    _system("capset", struct.pack("Ii", CAPABILITIES_VERSION, 0), bytes(24))
    if 0 in os.getresuid():
        raise PermissionError("the sandbox still runs as root")


# The server


def main(settings: Mapping[str, Any]) -> None:
    """Gives up rights, says so, and serves until the parent is gone.

    Args:
        settings: ``control``, the descriptor of the socket; ``home``, Python's folder; ``keep``, descriptors that must
            stay open for it; ``folder``, the replies' own; ``owner``, the user to become; ``way``, what encloses this
            process; and the limits.
    """
    control = socket.socket(fileno=os.dup(settings["control"]))
    os.close(settings["control"])
    try:
        for name in LOADED:
            importlib.import_module(name)
        told = enclose(settings)
        program = seccomp_filter(os.uname().machine)
    except (OSError, NotImplementedError) as error:
        _tell(control, {"error": str(error)})
        return
    warnings.simplefilter("ignore")
    gc.collect()
    gc.freeze()
    os.dup2(0, 2)
    _tell(control, told)
    serve(control, settings, program)


def enclose(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Puts this process, and all that it starts, into the enclosure, and says what it is made of.

    Raises:
        OSError: The system does not allow what is needed.
    """
    folder, owner, version = settings["folder"], settings["owner"], landlock_version()
    if settings["way"] == "namespaces":
        enter_namespaces(folder, settings["folder_bytes"], owner)
    _system("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if version:
        restrict_files(folder, settings["home"])
    elif settings["way"] != "bubblewrap":
        raise OSError("the kernel has no Landlock")
    os.chdir(folder)  # while the folders above it can be entered
    give_up_rights(owner)
    _system("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process of the same user may look into its memory
    for name in ("memory_bytes", "file_bytes", "open_files"):
        set_limit(RESOURCES[name], settings[name])
    set_limit(resource.RLIMIT_CORE, 0)
    return {"way": settings["way"], "landlock": version, "user": owner}


RESOURCES = {
    "memory_bytes": resource.RLIMIT_AS,
    "file_bytes": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
}


def set_limit(kind: int, value: int, extra: int = 0) -> None:
    """Sets a limit; the hard one, at which nothing more can be done about it, is ``extra`` higher."""
    _, hard = resource.getrlimit(kind)
    allowed = [value, value + extra] if hard == resource.RLIM_INFINITY else [min(value, hard), min(value + extra, hard)]
    resource.setrlimit(kind, (allowed[0], allowed[1]))


def serve(control: socket.socket, settings: Mapping[str, Any], program: bytes) -> None:
    """Runs jobs until the other end of the socket is closed.

    A job is a message with the name of the function and three descriptors: the program and the tests, both files, and
    a socket for the tests' outcomes. It is answered by a syntax error, or by the start; then any message, and the
    parent's end too, ends it.
    """
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 3)
        if not message:
            return
        code = _compiled(descriptors[0])
        if isinstance(code, str):
            _close(descriptors)
            _tell(control, {"syntax_error": code})
            continue
        try:
            children = _start(code, json.loads(message), descriptors, settings, program)
        except OSError as error:
            _tell(control, {"broke_down": str(error)})
            return
        _tell(control, {"started": True})
        control.recv(1)
        _tell(control, {"processes": [_end(child) for child in children], "emptied": _emptied()})


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError):  # the parent is gone
        control.send(json.dumps(message).encode())


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _compiled(program: int) -> CodeType | str:
    """The program, or what is wrong with it. Compiling runs nothing of it."""
    try:
        with open(program, "rb", closefd=False) as file:
            return compile(file.read().decode(), "<reply>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"[:MAX_REASON]


def _start(
    code: CodeType, entry_point: str, descriptors: Sequence[int], settings: Mapping[str, Any], program: bytes
) -> list[int]:
    """The process ids of the reply and of its tests."""
    (calls, calls_in), (results, results_in) = os.pipe(), os.pipe()
    _, tests, report = descriptors

    def reply() -> None:
        run_program(code, entry_point, calls, results_in, settings["output_bytes"])

    def test() -> None:
        candidate = Candidate(calls_in, results, settings["output_bytes"])
        with open(tests, "rb") as file:
            text = json.load(file)
        for outcome in run_tests(text, entry_point, candidate):
            _write(report, _line(outcome))

    children = [
        _fork(reply, {calls, results_in}, settings, program),
        _fork(test, {calls_in, results, tests, report}, settings, program),
    ]
    _close([calls, calls_in, results, results_in, *descriptors])
    return children


def _fork(work: Callable[[], None], keep: set[int], settings: Mapping[str, Any], program: bytes) -> int:
    server = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == server:
            _close_others(keep | {*settings["keep"]}, settings["open_files"])
            set_limit(resource.RLIMIT_CPU, settings["cpu_seconds"], extra=1)
            set_limit(resource.RLIMIT_NPROC, 0)
            restrict_system_calls(program)
            work()
            status = 0
    finally:
        os._exit(status)


def _close_others(keep: set[int], end: int) -> None:
    bounds = [2, *sorted(descriptor for descriptor in keep if descriptor < end), end]
    for before, after in itertools.pairwise(bounds):
        os.closerange(before + 1, after)


def _end(child: int) -> dict[str, float]:
    """Kills a process that may have ended, and says how it did: its exit code, or the signal as a negative number."""
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return {"exit": os.waitstatus_to_exitcode(status), "cpu_seconds": usage.ru_utime + usage.ru_stime}


def _emptied() -> bool:
    """Whether nothing is left in the reply's folder; there are no folders in it, since making them is refused."""
    try:
        for name in os.listdir():
            os.unlink(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    main(json.loads(sys.argv[1]))
