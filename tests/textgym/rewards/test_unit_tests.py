import os
import pickle
import socket
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from textgym import Episode, Sample, Turn
from textgym.errors import DataError, RewardError, TextGymError
from textgym.rewards.unit_tests import UnitTests, code_of
from textgym.sandbox import Limits, Outcome

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

PROMPT = 'def double(x):\n    """Twice x."""\n'
TESTS = [([1], 2), ([2], 4), ([-3], -6), ([0], 0)]
NONE = dict.fromkeys(("unit_tests", "passed", "failed", "error", "syntax_error", "timeout", "killed"), 0.0)


@pytest.fixture(scope="module")
def unit_tests():
    return UnitTests(allow_code_execution=True, limits=Limits(cpu_seconds=2, seconds=20))


def episode(response, prompt=PROMPT, tests=TESTS, entry_point="double"):
    return Episode(Sample("a", prompt, (), {"tests": tests, "entry_point": entry_point}), [Turn("assistant", response)])


def test_worked_scores(unit_tests):
    replies = ["    return 2 * x\n", "    return x * x\n", "    return 1 / x\n", "    return 2 x", "pass", ""]
    scores = unit_tests.score([episode(reply) for reply in replies])
    four = {**NONE, "tests": 4.0}
    assert [score.value for score in scores] == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert [score.parts for score in scores] == [
        {**four, "unit_tests": 1.0, "passed": 4.0},
        {**four, "unit_tests": 0.5, "passed": 2.0, "failed": 2.0},
        {**four, "failed": 3.0, "error": 1.0},
        {**four, "syntax_error": 4.0},
        {**four, "failed": 4.0},
        {**four, "failed": 4.0},
    ]
    assert {score.status for score in scores} == {"ok"}


def test_reasons_in_words(unit_tests):
    assert unit_tests.outcomes(episode("    return x * x")) == [
        Outcome("failed", "for [1] it returned 1, not 2"),
        Outcome("passed"),
        Outcome("failed", "for [-3] it returned 9, not -6"),
        Outcome("passed"),
    ]


def test_the_reply_may_be_the_whole_function_or_markdown(unit_tests):
    whole = "def double(x):\n    return 2 * x"
    assert code_of(f"Here it is:\n```python\n{whole}\n```\nIt doubles. ```x```") == whole
    assert code_of(f"```\n{whole}") == whole
    assert code_of(whole) == whole
    fenced = f"Sure!\n```py\n{whole}\n```"
    messages = [{"role": "user", "content": "Write double(x)."}]
    scores = unit_tests.score([episode(whole), episode(fenced), episode(fenced, messages)])
    assert [score.value for score in scores] == [1.0, 1.0, 1.0]


def test_a_prompt_that_is_no_part_of_the_program():
    asked = "Write a function double(x)."
    whole = episode("def double(x):\n    return 2 * x", asked)
    assert UnitTests(allow_code_execution=True).score([whole])[0].parts["syntax_error"] == 4.0
    assert UnitTests(allow_code_execution=True, completes_prompt=False).score([whole])[0].value == 1.0


def test_tests_under_other_names():
    sample = Sample("a", PROMPT, (), {"test": PROMPT + "def check(f): assert f(4) == 8", "name": "double"})
    reward = UnitTests("test", "name", allow_code_execution=True)
    scores = reward.score([Episode(sample, [Turn("assistant", r)]) for r in ("    return x + 4", "    return x")])
    assert [(score.value, score.parts["tests"]) for score in scores] == [(1.0, 1.0), (0.0, 1.0)]


def test_what_cannot_be_scored_fails_alone(unit_tests):
    good = episode("    return 2 * x")
    without = Episode(Sample("b", PROMPT, (), {"tests": TESTS}), [Turn("assistant", "    return 2 * x")])
    broken = episode("    return 2 * x", tests="def check(candidate): candidate(")
    scores = unit_tests.score([good, without, broken, good])
    assert [score.value for score in scores] == [1.0, None, None, 1.0]
    assert scores[1].status == "unit_tests: sample 'b' has no 'entry_point' in its meta."
    assert scores[2].status.startswith("unit_tests: the tests cannot be run: SyntaxError")
    with pytest.raises(DataError, match="no 'entry_point'"):
        unit_tests.outcomes(without)


def test_a_breakdown_of_the_sandbox_is_a_failed_score(unit_tests, monkeypatch):
    def break_down(job):
        raise TextGymError("the sandbox could not start a worker: no memory")

    monkeypatch.setattr(unit_tests.sandbox, "run", break_down)
    (score,) = unit_tests.score([episode("    return 2 * x")])
    assert (score.value, score.status) == (None, "unit_tests: the sandbox could not start a worker: no memory")


def test_is_opt_in():
    for given in ({}, {"allow_code_execution": False}, {"allow_code_execution": "yes"}):
        with pytest.raises(RewardError, match=r"in a sandbox; read .* UnitTests\(allow_code_execution=True\)"):
            UnitTests(**given)


def test_a_batch_keeps_its_order_and_is_scored_as_one_by_one(unit_tests):
    episodes = [episode(f"    return x + {i % 4}") for i in range(12)]
    together = unit_tests.score(episodes)
    assert [score.value for score in together] == [0.25, 0.25, 0.25, 0.0] * 3
    assert [unit_tests.score([one])[0] for one in episodes[:4]] == together[:4]


def test_goes_through_pickle(unit_tests):
    copy = pickle.loads(pickle.dumps(unit_tests))
    assert copy.score([episode("    return 2 * x")])[0].value == 1.0


# Escapes. Each returns True where it gets out. They are bounded, so that a broken sandbox fails a test and not the
# machine: at most 200 forks, 2 GB, 10 seconds.

BOUND = """
import os, sys, time
end = time.monotonic() + 10
"""
ESCAPES = {
    "fork bomb": (
        """
        for _ in range(200):
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
        return True
        """,
        "error",
    ),
    "endless loop": ("while time.monotonic() < end: pass\nreturn True", "timeout"),
    "endless loop that catches everything": (
        """
        while time.monotonic() < end:
            try:
                while time.monotonic() < end: pass
            except BaseException:
                pass
        return True
        """,
        "timeout",
    ),
    "memory bomb": ("return len(bytearray(2 ** 31)) > 0", "error"),
    "memory bomb in small pieces": ("return len([bytearray(2 ** 20) for _ in range(2 ** 11)]) > 0", "error"),
    "reading the home folder": ("return open(x['secret']).read() == 'secret'", "error"),
    "reading the system": ("return 'root' in open('/etc/passwd').read()", "error"),
    "listing the home folder": ("return len(os.listdir(os.path.dirname(x['secret']))) > 0", "error"),
    "writing outside": ("return open(x['outside'], 'w').write('x') > 0", "error"),
    "removing": ("os.unlink(x['secret'])\nreturn True", "error"),
    "moving": ("os.rename(x['secret'], 'here')\nreturn True", "error"),
    "a big file": ("return open('big', 'wb').write(bytes(2 ** 26)) > 0", "error"),
    "many open files": ("return len([open('/dev/null') for _ in range(200)]) > 0", "error"),
    "opening a socket": (
        "import socket\nreturn socket.create_connection(('127.0.0.1', x['port']), 5) is not None",
        "error",
    ),
    "opening a socket by the system call": (
        "import ctypes\nreturn ctypes.CDLL(None).syscall(41 if os.uname().machine == 'x86_64' else 198, 2, 1, 0) >= 0",
        "failed",
    ),
    "a command": ("return os.system('true') == 0", "failed"),
    "killing the parent": ("os.kill(x['parent'], 9)\nreturn True", "error"),
    "killing its parent": ("os.kill(os.getppid(), 9)\nreturn True", "error"),
    "killing its group": ("os.killpg(0, 9)\nreturn True", "error"),
    "killing everything": ("os.kill(-1, 9)\nreturn True", "error"),
    "leaving the group": ("os.setsid()\nreturn True", "error"),
    "becoming root": ("os.setuid(0)\nreturn os.getuid() == 0", "error"),
    "being root": ("return os.geteuid() == 0 or os.getuid() == 0", "failed"),
    "returning gigabytes": ("return 'x' * 300_000_000", "error"),
    "exiting as if all were well": ("sys.exit(0)", "error"),
    "ending as if all were well": ("os._exit(0)", "killed"),
    "a crash": ("import ctypes\nctypes.string_at(1)", "killed"),
}


@pytest.fixture
def prey():
    """A file at home, a place outside that anyone may write to, and a port that listens."""
    with (
        tempfile.NamedTemporaryFile("w", dir=Path.home(), prefix="textgym-test-") as secret,
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        secret.write("secret")
        secret.flush()
        os.chmod(secret.name, 0o644)
        os.chmod(folder, 0o777)
        outside = f"{folder}/outside"
        yield {"secret": secret.name, "outside": outside, "port": server.getsockname()[1], "parent": os.getpid()}
        assert Path(secret.name).read_text() == "secret"
        assert not Path(outside).exists()


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape(unit_tests, prey, name):
    body, status = ESCAPES[name]
    reply = f"{BOUND}def escape(x):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    (score,) = unit_tests.score([episode(reply, "", [([prey], True)], "escape")])
    assert score.value == 0.0
    assert score.parts == {**NONE, "tests": 1.0, status: 1.0}
    assert score.status == "ok"
    assert unit_tests.score([episode("    return 2 * x")])[0].value == 1.0


@pytest.mark.parametrize(
    "where", ["print('x' * 10 ** 6)", "os.write(1, b'x' * 10 ** 6)", "os.write(2, b'x' * 10 ** 6)"]
)
def test_printed_gigabytes_go_nowhere(unit_tests, capfd, where):
    reply = f"{BOUND}def f(x):\n    for _ in range(2000):\n        {where}\n    return x"
    (score,) = unit_tests.score([episode(reply, "", [([1], 2)], "f")])
    assert score.value == 0.0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "reply",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('passed'); raise SystemExit",
        "def check(candidate): pass\ndef double(x): pass",
        "import builtins; builtins.AssertionError = type('None', (Exception,), {})\ndef double(x): pass",
        "class Right:\n    def __eq__(self, other): return True\ndef double(x): return Right()",
        "import math; math.isclose = lambda *a: True\ndef double(x): return 0.0",
    ],
)
@pytest.mark.parametrize(
    "tests",
    [
        [([1], 2), ([3], 6)],
        "import math\ndef check(candidate):\n    assert candidate(1) == 2 and math.isclose(candidate(3), 6)\n",
    ],
    ids=["pairs", "program"],
)
def test_passing_cannot_be_pretended(unit_tests, reply, tests):
    (score,) = unit_tests.score([episode(reply, "", tests)])
    assert (score.value, score.parts["passed"], score.status) == (0.0, 0.0, "ok")
    assert score.parts["failed"] + score.parts["error"] + score.parts["killed"] == score.parts["tests"]


def test_a_reply_costs_little(unit_tests):
    """Well under 50 milliseconds of processor time; the bound is loose for a machine with other things to do."""
    episodes = [episode(f"    return x + {i}") for i in range(40)]
    unit_tests.score(episodes)
    began = time.monotonic()
    unit_tests.score(episodes)
    assert (time.monotonic() - began) / len(episodes) < 0.3
