import contextlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from textgym import sandbox as sandbox_module
from textgym.errors import ConfigurationError, DataError, TextGymError
from textgym.sandbox import WAYS, Job, Limits, Outcome, Sandbox, protections

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

FOLDER = Path(sandbox_module.__file__).parent
ADD = "def f(x):\n    return x + 1\n"
TWO_TESTS = [([1], 2), ([2], 3)]


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox()


def function(body):
    return "def f(x):\n" + textwrap.indent(textwrap.dedent(body), "    ")


def run(sandbox, program, tests=TWO_TESTS):
    return sandbox.run(Job(program, "f", tests))


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


# Plain data


@pytest.mark.parametrize(
    "value",
    [None, True, 1, -0.5, math.inf, 2 + 1j, "é\ud800\n", b"\x00\xff", [1, (2, {3, 4}), frozenset({5})], {(1, 2): [{}]}],
    ids=repr,
)
def test_plain_data_survive_with_their_types(value):
    from textgym.sandbox_worker import decode, encode

    copy = decode(json.loads(json.dumps(encode(value))))
    assert copy == value
    assert type(copy) is type(value)


def test_subclasses_of_plain_data_become_plain():
    from textgym.sandbox_worker import decode, encode

    point = namedtuple("Point", "x y")(1, 2)
    copies = [decode(encode(value)) for value in (Counter("aab"), point)]
    assert copies == [{"a": 2, "b": 1}, (1, 2)]
    assert [type(copy) for copy in copies] == [dict, tuple]


def test_what_is_no_plain_data():
    from textgym.sandbox_worker import decode, encode

    with pytest.raises(TypeError, match="a generator is no plain data"):
        encode([(x for x in "a")])
    for forged in ({}, {"tuple": [], "set": []}, {"object": []}, {"set": [[]]}, {"complex": "x"}):
        with pytest.raises((ValueError, TypeError)):
            decode(forged)


# Outcomes


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (ADD, [("passed", "^$"), ("passed", "^$")]),
        ("def f(x):\n    return 2", [("passed", "^$"), ("failed", r"^for \[2\] it returned 2, not 3$")]),
        ("def f(x):\n    return 3 // (x - 1)", [("error", "^ZeroDivisionError: "), ("passed", "^$")]),
        ("def g(x):\n    return x", [("error", "^NameError: the program defines no function 'f'$")] * 2),
        ("f = 3", [("error", "^NameError: the program defines no function 'f'$")] * 2),
        ("1 / 0", [("error", "^ZeroDivisionError: division by zero$")] * 2),
        ("def f(x:", [("syntax_error", "^SyntaxError: .* was never closed")] * 2),
        ("f = '\ud800'", [("syntax_error", "^UnicodeDecodeError: ")] * 2),
        ("def f(x):\n\0", [("syntax_error", "null bytes")] * 2),
        (function("return print"), [("error", "^TypeError: a builtin_function_or_method is no plain data")] * 2),
        (function("return 'a' * 2_000_000"), [("error", "^ValueError: the result takes 2000014 bytes, more than")] * 2),
        (function("a = []; a.append(a); return a"), [("error", "^RecursionError: ")] * 2),
        (function("return f(x)"), [("error", "^RecursionError: ")] * 2),
        (function("import ctypes; ctypes.string_at(0)"), [("killed", "^its process ended by SIGSEGV$")] * 2),
        (function("import os; os._exit(3)"), [("killed", "^its process ended with exit code 3$")] * 2),
    ],
)
def test_outcomes(sandbox, program, expected):
    outcomes = run(sandbox, program)
    assert statuses(outcomes) == [status for status, _ in expected]
    for outcome, (_, pattern) in zip(outcomes, expected, strict=True):
        assert re.search(pattern, outcome.reason), outcome


def test_calls_before_the_end_count():
    program = function("if x == 3: import os; os._exit(0)\nreturn x + 1")
    outcomes = run(Sandbox(), program, [([1], 2), ([2], 4), ([3], 4), ([4], 5)])
    assert statuses(outcomes) == ["passed", "failed", "killed", "killed"]


@pytest.mark.parametrize(
    ("body", "limits", "reason"),
    [
        ("while True: pass", Limits(cpu_seconds=1, seconds=30), "took more than 1 seconds of processor time"),
        ("import time; time.sleep(10)", Limits(seconds=0.3), "took more than 0.3 seconds"),
    ],
    ids=["processor", "wall"],
)
def test_time_limits(body, limits, reason):
    began = time.monotonic()
    assert run(Sandbox(limits), function(body)) == [Outcome("timeout", reason)] * 2
    assert time.monotonic() - began < 9


def test_a_program_that_ignores_the_signal_of_the_processor_limit_is_killed():
    program = function("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass")
    outcomes = run(Sandbox(Limits(cpu_seconds=1, seconds=30)), program)
    assert outcomes == [Outcome("timeout", "took more than 1 seconds of processor time")] * 2


def test_tests_as_a_program(sandbox):
    check = "def check(candidate):\n    assert candidate(1) == 2\n    assert f(2) == 3, 'two'\n"
    assert run(sandbox, ADD, check) == [Outcome("passed")]
    assert run(sandbox, "def f(x): return 2", check) == [Outcome("failed", "two")]
    assert run(sandbox, "def f(x): return 1", check) == [Outcome("failed", "an assertion failed")]
    assert run(sandbox, "def f(x): return x[0]", check)[0].status == "error"


def test_exceptions_reach_the_tests_under_their_names(sandbox):
    check = """
def check(candidate):
    for wanted, x in ((ValueError, 1), (RuntimeError, 2), (RuntimeError, 3)):
        try:
            candidate(x)
        except wanted as error:
            assert str(error) == {1: "no", 2: "Own: no", 3: "UnicodeDecodeError: no"}[x], error
        else:
            assert False, x
"""
    program = """
class Own(Exception): pass
class UnicodeDecodeError(Exception): pass
def f(x): raise (ValueError, Own, UnicodeDecodeError)[x - 1]("no")
"""
    assert run(sandbox, program, check) == [Outcome("passed")]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("def check(candidate:", "cannot be run: SyntaxError"),
        ("x = 1", "cannot be run: KeyError: 'check'"),
        ("def check(candidate): candidate(print)", "an argument that cannot be sent: a builtin_function"),
        ("", "there are no tests"),
        ([], "there are no tests"),
        (None, "there are no tests"),
        (5, "pairs of a list of arguments and an expected value"),
        ([1, 2], "pairs of a list of arguments and an expected value"),
        ([([1], print)], "a builtin_function_or_method is no plain data"),
    ],
)
def test_broken_tests_are_an_error_of_the_data(sandbox, tests, message):
    with pytest.raises(DataError, match=message):
        run(sandbox, ADD, tests)
    assert run(sandbox, ADD) == [Outcome("passed")] * 2


def test_an_entry_point_that_is_no_name(sandbox):
    with pytest.raises(DataError, match="the entry point is the name of a function, not None"):
        sandbox.run(Job(ADD, None, TWO_TESTS))


def test_the_standard_library_is_there_and_nothing_else(sandbox):
    program = function(
        """
        import importlib
        found = []
        for name in ["collections", "sqlite3", "wave", "_strptime", "numpy", "textgym", "sandbox_worker", "errors"]:
            try:
                importlib.import_module(name)
                found.append(name)
            except ModuleNotFoundError:
                pass
        return found
        """
    )
    expected = ["collections", "sqlite3", "wave", "_strptime"]
    assert run(sandbox, program, [([0], expected)]) == [Outcome("passed")]


def test_a_folder_of_its_own_that_is_empty_each_time(sandbox):
    program = function(
        """
        import os
        before = os.listdir(".")
        with open(f"file{x}", "w") as file:
            file.write("text")
        return [before, open(f"file{x}").read(), os.listdir(".")]
        """
    )
    tests = [([1], [[], "text", ["file1"]])]
    assert [run(sandbox, program, tests) for _ in range(3)] == [[Outcome("passed")]] * 3


def test_the_same_program_draws_the_same_random_numbers(sandbox):
    program = function("import random; return [random.random(), hash('text')]")
    (first,), (second,) = (run(sandbox, program, [([0], None)]) for _ in range(2))
    assert first == second
    assert "returned [0." in first.reason


def test_jobs_of_several_threads_keep_their_outcomes(sandbox):
    jobs = [Job(f"def f(x): return x + {i % 3}", "f", TWO_TESTS) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(sandbox.run, jobs))
    assert [statuses(o)[0] for o in outcomes] == ["failed", "passed", "failed"] * 8


def test_a_copy_works(sandbox):
    copy = pickle.loads(pickle.dumps(sandbox))
    assert copy.limits == sandbox.limits
    assert run(copy, ADD) == [Outcome("passed")] * 2


# What a reply tries; at the level of scores, see rewards/test_unit_tests.py


FORGERIES = {
    "an exit": "import sys; sys.exit(0)",
    "an exit at once": "import os; os._exit(0)",
    "a check of its own": "def check(candidate): pass\ndef f(x): return 0",
    "an object that equals everything": """
class Everything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __abs__(self): return self
    __sub__ = __rsub__ = __abs__
    def __lt__(self, other): return True
def f(x): return Everything()
""",
    "a number that equals everything": """
class Everything(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Everything()
""",
    "patched built-ins": """
import builtins, json, math, os, sys
builtins.AssertionError = builtins.Exception = ZeroDivisionError
json.loads = json.dumps = lambda *a, **k: {"value": [["passed", ""]] * 9}
math.fabs = abs = builtins.abs = lambda x: 0
builtins.print = builtins.isinstance = builtins.len = lambda *a: True
def f(x): return 0
""",
    "a trace function": """
import sys
def tracer(frame, event, arg):
    frame.f_locals.update(value=2, expected=0)
    return tracer
sys.settrace(tracer)
def f(x): return 0
""",
    "reports on every descriptor": """
import os
def shout():
    for descriptor in range(64):
        for line in (b'["passed", ""]', b'{"processes": [], "emptied": true}', b'{"value": {"passed": []}}'):
            try:
                os.write(descriptor, line + b"\\n")
            except OSError:
                pass
shout()
def f(x):
    shout()
    return 0
""",
    "a look for the tests": """
import gc, os, sys
def f(x):
    found = []
    frame = sys._getframe()
    while frame:
        found.append(frame.f_locals)
        frame = frame.f_back
    for descriptor in range(64):
        try:
            found.append(os.pread(descriptor, 10 ** 6, 0))
        except OSError:
            pass
    return str(found + gc.get_objects())
""",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_passing_cannot_be_forged(sandbox, forgery):
    secret = "wanted: 271828"
    outcomes = run(sandbox, FORGERIES[forgery], [([1], secret), ([2], 3)])
    assert "passed" not in statuses(outcomes)
    if outcomes[0].status == "failed":
        assert outcomes[0].reason.count(secret) <= 1, "the reply found the value"
    check = "import math\ndef check(candidate): assert abs(math.fabs(candidate(1)) - 9) < 1e-6\n"
    assert "passed" not in statuses(run(sandbox, FORGERIES[forgery], check))
    assert run(sandbox, ADD) == [Outcome("passed")] * 2


def test_the_compiler_may_crash_or_hang_without_harm(sandbox):
    for program in ("(" * 100_000, "-" * 1_000_000 + "1", "x = " + "[" * 5000 + "]" * 5000, "f" + "(x)" * 100_000):
        assert statuses(run(sandbox, program))[0] in ("syntax_error", "error", "killed", "timeout")
    assert run(sandbox, ADD) == [Outcome("passed")] * 2


REFUSED_CALLS = {
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "session": "os.setsid()",
    "signal to itself": "os.kill(os.getpid(), 0)",
    "signal to the server": "os.kill(os.getppid(), 9)",
    "priority": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "owner of a descriptor": "import fcntl; fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
    "limits of others": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "limits of its own": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "socket": "import socket; socket.socket(socket.AF_INET6)",
    "unix socket": "import socket; socket.socketpair()",
    "user": "os.setuid(0)",
    "mode": "open('a', 'w').close(); os.chmod('a', 0o777)",
    "folder": "os.mkdir('a')",
    "link": "os.symlink('/etc/passwd', 'a')",
    "truncation": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    **{name: f"call({number})" for name, number in {"io_uring": 425, "pidfd_open": 434, "clone3": 435}.items()},
}
REFUSED_PLACES = {
    "processes": "os.listdir('/proc/1')",
    "the server's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "the system": "os.listdir('/etc')",
    "the way up": "os.listdir('..')",
    "shared memory": "open('/dev/shm/textgym-test', 'w')",
    "Python's own files": "open(os.__file__, 'a')",
}
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    if libc.syscall(number, 0, 0, 0, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "refused")
def f(x):
    try:
        {}
    except {} as error:
        return "refused"
    return "allowed"
"""


@pytest.mark.parametrize("call", REFUSED_CALLS)
def test_refused_calls(sandbox, call):
    program = CALL.format(REFUSED_CALLS[call], "PermissionError")
    assert run(sandbox, program, [([0], "refused")]) == [Outcome("passed")]


@pytest.mark.parametrize("place", REFUSED_PLACES)
def test_refused_places(sandbox, place):
    program = CALL.format(REFUSED_PLACES[place], "OSError")
    assert run(sandbox, program, [([0], "refused")]) == [Outcome("passed")]


def test_threads_are_refused(sandbox):
    outcomes = run(sandbox, function("import threading; threading.Thread(target=print).start()"))
    assert outcomes == [Outcome("error", "RuntimeError: can't start new thread")] * 2


def test_gives_up_root_and_hides_the_environment(sandbox, monkeypatch):
    monkeypatch.setenv("TEXTGYM_TEST_SECRET", "password")
    program = function("import os; return [os.getuid(), os.getgid() == 0, 'TEXTGYM_TEST_SECRET' in os.environ]")
    user = protections()["user"]
    assert user != 0
    assert run(Sandbox(Limits(seconds=8)), program, [([0], [user, False, False])])[0].status == "passed"


def test_the_filter_alone_forbids_to_truncate_what_is_opened_for_reading(tmp_path):
    """For Landlock's first versions, which do not."""
    file = tmp_path / "file"
    file.write_text("text")
    script = f"""
import os, sys
del sys.path[0]
sys.path.append({str(FOLDER)!r})
import sandbox_worker as worker
worker._system("prctl", worker.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
worker.restrict_system_calls(worker.seccomp_filter(os.uname().machine))
for mode in (os.O_RDONLY, os.O_ACCMODE):
    try:
        os.open({str(file)!r}, mode | os.O_TRUNC)
    except PermissionError:
        print(os.path.getsize({str(file)!r}), end=" ", flush=True)
os.close(os.open({str(file)!r}, os.O_WRONLY | os.O_TRUNC))
print(os.path.getsize({str(file)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"4 4 0\n"


def test_an_unknown_architecture_is_refused():
    from textgym.sandbox_worker import seccomp_filter

    assert len(seccomp_filter("aarch64")) % 8 == 0
    with pytest.raises(NotImplementedError, match="x86_64 and aarch64, not riscv64"):
        seccomp_filter("riscv64")


# What the system allows


@pytest.mark.parametrize("way", WAYS)
def test_every_way_that_is_there(way):
    try:
        worker = sandbox_module._Worker(Limits(cpu_seconds=1, folder_bytes=2**20, file_bytes=2**20), way)
    except sandbox_module._CannotStartError as error:
        pytest.skip(f"not allowed here: {error}")
    try:
        assert worker.run(Job(ADD, "f", TWO_TESTS)) == [Outcome("passed")] * 2
        secret = "import os; return open(os.path.expanduser('~root/.profile')).read() and None"
        for body in (secret, "open('/tmp/textgym-test', 'w')", "import os; os.fork()"):
            assert statuses(worker.run(Job(function(body), "f", [([1], None)]))) == ["error"]
        if way != "landlock":
            fill = "for i in range(9): open(str(i), 'w').write('x' * 10 ** 6)"
            (outcome,) = worker.run(Job(function(fill), "f", [([1], None)]))
            assert "No space left" in outcome.reason
    finally:
        worker.close()
    assert worker._process.returncode is not None


def test_folders_and_processes_of_workers_end_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = sandbox_module._Worker(Limits(), protections()["way"])
    assert len(list(tmp_path.iterdir())) == 1
    assert worker.run(Job(ADD, "f", TWO_TESTS)) == [Outcome("passed")] * 2
    worker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fresh_protections():
    protections.cache_clear()
    yield
    protections.cache_clear()


@pytest.mark.usefixtures("fresh_protections")
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ConfigurationError, match=f"needs Linux, not '{platform}', and runs nothing unprotected.*WSL 2"):
        Sandbox()


@pytest.mark.usefixtures("fresh_protections")
def test_a_system_that_allows_too_little_is_refused(monkeypatch, tmp_path):
    without_landlock = (
        (FOLDER / "sandbox_worker.py").read_text().replace("(CREATE_RULESET)", "(CREATE_RULESET + 10000)")
    )
    script = tmp_path / "worker.py"
    script.write_text(without_landlock)
    monkeypatch.setattr(sandbox_module, "SCRIPT", script)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"Linux 5\.13 or later.*bubblewrap: it is not installed; .*Landlock"):
        Sandbox()


def test_a_worker_that_cannot_start_is_a_breakdown(monkeypatch, tmp_path):
    sandbox = Sandbox(Limits(seconds=7))
    (tmp_path / "worker.py").write_text("raise SystemError('no worker today')")
    monkeypatch.setattr(sandbox_module, "SCRIPT", tmp_path / "worker.py")
    with pytest.raises(TextGymError, match="could not start a worker: SystemError: no worker today"):
        run(sandbox, ADD)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"seconds": 0}, r"seconds=0; it is a number, at least 0.05"),
        ({"seconds": math.nan}, "seconds=nan"),
        ({"cpu_seconds": 0.5}, r"cpu_seconds=0.5; it is a whole number, at least 1"),
        ({"memory_bytes": 1024}, "memory_bytes=1024; it is a whole number, at least 134217728"),
        ({"open_files": "many"}, "open_files='many'"),
    ],
)
def test_limits_that_are_none(limits, message):
    with pytest.raises(ConfigurationError, match=message):
        Limits(**limits)


# Without the package's dependencies: another interpreter, another user, a parent that dies

ALONE = """
import sys, types
package = types.ModuleType("textgym")
package.__path__ = [{!r}]
sys.modules["textgym"] = package
from textgym import sandbox
box = sandbox.Sandbox(sandbox.Limits(cpu_seconds=1))
run = lambda body: box.run(sandbox.Job("def f(x):\\n    " + body, "f", [([1], 2)]))[0]
"""


def members(group):
    """The processes of a group that are still running."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
            found += [file.parent.name] if int(of_group) == group and state != "Z" else []
    return found


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    script = f"""{ALONE.format(str(FOLDER))}
import os, signal, threading
run("return 2")
worker = sandbox._idle_workers(box.limits, os.getpid())[0]._process.pid
def die():
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Timer(0.5, die).start()
run("import time; time.sleep(60)")
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where the killed one leaves an empty folder
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=environment)
    assert killed.returncode == -9, killed.stderr
    deadline = time.monotonic() + 20
    while members(int(killed.stdout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(int(killed.stdout)) == []


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_another_user_can_have_it_too():
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("there is no Python that every user may run")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sandbox.py", "sandbox_worker.py", "errors.py"):
            shutil.copy(FOLDER / name, folder)
        for path in (folder, *map(str, Path(folder).iterdir())):
            os.chmod(path, 0o755)
        script = f"""{ALONE.format(folder)}
import os
print(sandbox.protections()["user"] == os.getuid() == 54321)
for body in ("return 2", "return os.fork()", "return open({folder!r} + '/errors.py').read()", "while True: pass"):
    print(run("import os; " + body if not body.startswith("while") else body).status)
"""
        command = [python, "-c", script]
        done = subprocess.run(
            command, user=54321, group=54321, extra_groups=[], capture_output=True, check=True, cwd="/"
        )
    assert done.stdout.decode().split() == ["True", "passed", "error", "error", "timeout"]
