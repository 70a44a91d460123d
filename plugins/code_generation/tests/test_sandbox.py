"""The sandbox: what is contained, how it is told apart, and that no pass can be forged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptflow.errors import SandboxUnavailable
from gptflow_code_generation.sandbox import backends, probe, runner
from gptflow_code_generation.sandbox.guest import escape
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.trial import Report, run_trial

LIMITS = Limits(cpu_s=1)
TESTS = ("assert add(1, 2) == 3", "assert add(-1, 1) == 0")
GOOD = "def add(a, b):\n    return a + b\n"

Trial = Callable[..., Report]

_verdicts = [probe.probe(name) for name in backends.BACKENDS]
_sound = [verdict.backend for verdict in _verdicts if verdict.contains]


_none = pytest.param("none", marks=pytest.mark.skip(reason="; ".join(map(str, _verdicts))))


@pytest.fixture(params=_sound or [_none])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trial(backend: str) -> Trial:
    def run(code: str, *tests: str, imports: str = "", limits: Limits = LIMITS) -> Report:
        return run_trial(backend, code, tests or TESTS, imports=imports, limits=limits)

    return run


def test_right_code_passes(trial: Trial) -> None:
    report = trial(GOOD)
    assert (report.status, report.passed, report.failed) == ("passed", 2, 0)
    assert report.wall_s > 0


def test_wrong_code_fails_and_the_detail_names_the_test(trial: Trial) -> None:
    report = trial("def add(a, b):\n    return 3")
    assert (report.status, report.passed, report.failed) == ("failed", 1, 1)
    assert report.detail == "assert add(-1, 1) == 0: AssertionError"


HOSTILE = {
    "fork bomb": ("import os\nwhile True:\n    os.fork()", "blocked"),
    "fork bomb that does not mind": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "timeout",
    ),
    "removing everything": ("import shutil\nshutil.rmtree('/')", "blocked"),
    "removing with a program": ("import subprocess\nsubprocess.run(['rm', '-rf', '/'])", "blocked"),
    "removing with a shell": ("import os\nos.system('rm -rf /')\ndef add(a, b): ...", "failed"),
    "8 GB at once": ("x = [0] * (1 << 30)", "memory"),
    "8 GB bit by bit": ("x = []\nwhile True:\n    x.append(bytes(1 << 26))", "memory"),
    "8 GB in a call": ("def add(a, b):\n    return len([0] * (1 << 30))", "memory"),
    "infinite output": ("while True:\n    print('x' * 1000)", "timeout"),
    "infinite loop": ("while True:\n    pass", "timeout"),
    "infinite loop in a call": ("def add(a, b):\n    while True:\n        pass", "timeout"),
    "infinite loop without warning": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        "timeout",
    ),
    "sleeping": ("import time\ntime.sleep(1e6)", "timeout"),
    "infinite answer": ("def add(a, b):\n    return 'x' * (1 << 26)", "crash"),
    "sys.exit": (f"import sys\nsys.exit(0)\n{GOOD}", "crash"),
    "sys.exit in a call": ("import sys\ndef add(a, b):\n    sys.exit(0)", "failed"),
    "os._exit": ("import os\nos._exit(0)", "crash"),
    "os._exit in a call": ("import os\ndef add(a, b):\n    os._exit(0)", "crash"),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", "crash"),
    "reading a file": ("def add(a, b):\n    return open('/etc/passwd').read()", "blocked"),
    "reading through a link": (
        "import os\nos.symlink('/etc/shadow', 'x')\nprint(open('x').read())",
        "blocked",
    ),
    "reading the environment": (
        "import os\ndef add(a, b):\n    return os.environ['HOME']",
        "failed",
    ),
    "finding the tests": (
        "import os\ndef add(a, b):\n    return os.listdir('../judge')",
        "blocked",
    ),
    "1 GB in a file": (
        "with open('x', 'wb') as f:\n    for i in range(1024):\n        f.write(bytes(1 << 20))",
        "failed",
    ),
    "1 GB in many files": (
        "for i in range(1024):\n    with open(str(i), 'wb') as f:\n        f.write(bytes(1 << 20))",
        "failed",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_is_contained_and_told_apart(trial: Trial, name: str) -> None:
    code, status = HOSTILE[name]
    report = trial(code)
    # How a namespace hides a file differs from how Landlock refuses it.
    allowed = {status, "failed"} if status == "blocked" else {status}
    assert report.status in allowed, report
    assert report.passed == 0
    assert report.failed == len(TESTS)


def test_a_socket_reaches_nobody(trial: Trial) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        report = trial(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")
        assert report.status in ("blocked", "failed")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("target", ["1", "os.getppid()", "-1", "these tests"])
def test_signals_reach_nobody(trial: Trial, target: str) -> None:
    target = target.replace("these tests", str(os.getpid()))
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        report = trial(f"import os\nos.kill({target}, 15)")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert report.passed == 0
    assert not received


FORGERIES = {
    "writing a verdict to every file descriptor": """
import os
def add(a, b):
    for fd in range(64):
        try:
            os.write(fd, b'{"test": null}\\n{"test": null}\\n')
        except OSError:
            pass
    return 7
""",
    "writing an answer before it is asked": """
import os
for fd in range(64):
    try:
        os.write(fd, b'{"names": {}}\\n{"value": 3}\\n{"value": 0}\\n')
    except OSError:
        pass
""",
    "an object that equals everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def add(a, b): return Equal()
""",
    "a number that equals everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(7)
""",
    "assertions that cannot fail": """
import builtins
builtins.AssertionError = type('Never', (Exception,), {})
def add(a, b): return 7
""",
    "looking for the tests in memory": """
import gc
def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and 'tests' in thing:
            thing['tests'] = []
    return 7
""",
    "built-in functions of its own": """
def all(values): return True
def sorted(values): return []
def add(a, b): return [7]
""",
    "leaving at the end": """
import atexit, os
atexit.register(lambda: os._exit(0))
def add(a, b): return 7
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_pass_cannot_be_forged(trial: Trial, name: str) -> None:
    tests = ("assert sorted([add(1, 2)]) == [3]", "assert all([add(-1, 1) == 0])")
    report = trial(FORGERIES[name], *tests)
    assert report.status != "passed"
    assert report.passed == 0


ORDINARY = {
    "plain data comes back as it went": (
        "def f(x):\n    return x",
        "values = [None, True, -1, 2**70, 1.5, 2j, 'ä', b'x', (1,), {1}, frozenset(), range(3)]\n"
        "assert all(f(v) == v and type(f(v)) is type(v) for v in values)",
    ),
    "keys may be tuples": ("def f():\n    return {(1, 2): [3]}", "assert f() == {(1, 2): [3]}"),
    "a subclass of dict compares as a dict": (
        "from collections import Counter\ndef f(s):\n    return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    "generators are iterated": (
        "def f(n):\n    for i in range(n):\n        yield i",
        "assert list(f(3)) == [0, 1, 2]",
    ),
    "a list is changed in place": (
        "def f(v):\n    v.sort()",
        "v = [2, 1]\nf(v)\nassert v == [1, 2]",
    ),
    "a function is passed as an argument": (
        "def f(g, x):\n    return g(g(x))",
        "assert f(lambda x: x + 3, 1) == 7",
    ),
    "an exception is caught": (
        "def f(x):\n    raise ValueError('no')",
        "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\n"
        "else:\n    assert False",
    ),
    "an object has methods, attributes and a length": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n"
        "    def push(self, x):\n        self.items.append(x)\n"
        "    def __len__(self):\n        return len(self.items)",
        "s = Stack()\ns.push(3)\nassert len(s) == 1 and s.items == [3] and s",
    ),
    "objects compare with each other": (
        "class P:\n    def __init__(self, x):\n        self.x = x\n"
        "    def __eq__(self, other):\n        return self.x == other.x\n"
        "def f(p):\n    return P(p.x)",
        "assert f(P(1)) == P(1) != P(2)",
    ),
    "a built-in function is redefined on purpose": (
        "def pow(a, b):\n    return a ** b + 1",
        "assert pow(2, 3) == 9",
    ),
    "a constant is used": ("LIMIT = 3\ndef f():\n    return LIMIT", "assert f() == LIMIT"),
    "keywords are passed": ("def f(**given):\n    return given", "assert f(a=1) == {'a': 1}"),
    "output is thrown away": (
        "def f():\n    print('x' * 100000)\n    return 1",
        "assert f() == 1",
    ),
    "files can be written and read": (
        "def f():\n    with open('x', 'w') as out:\n        out.write('1')\n"
        "    return open('x').read()",
        "assert f() == '1'",
    ),
}


@pytest.mark.parametrize("what", ORDINARY)
def test_ordinary_tests_work_across_the_wire(trial: Trial, what: str) -> None:
    code, test = ORDINARY[what]
    report = trial(code, test)
    assert report.status == "passed", report


def test_tests_get_their_imports(trial: Trial) -> None:
    code = "def f():\n    return 0.1 + 0.2"
    assert trial(code, "assert math.isclose(f(), 0.3)", imports="import math").status == "passed"


def test_a_missing_package_is_named(trial: Trial) -> None:
    report = trial("import numpy")
    assert report.status == "failed"
    assert "No module named 'numpy'" in report.detail


def test_a_test_that_loops_ends_too(trial: Trial) -> None:
    assert trial(GOOD, "while add(1, 2): pass").status == "timeout"


def test_nothing_is_left_behind(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trial("import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()")
    trial("while True:\n    pass")
    trial("import os\nos.symlink('/', 'root')\nos.mkdir('folder', 0)")
    assert not list(tmp_path.iterdir())
    assert not _guests(tmp_path)


def test_a_killed_supervisor_takes_its_guests_along(backend: str, tmp_path: Path) -> None:
    for role, name, text in (
        ("judge", "tests.json", '{"tests": ["f()"], "imports": ""}'),
        ("candidate", "code.py", "while True:\n    pass"),
    ):
        (tmp_path / role).mkdir()
        (tmp_path / role / name).write_text(text)
    job = {
        "backend": backend,
        "roles": ["judge", "candidate"],
        "limits": {"cpu_s": 60},
        "folder": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "gptflow_code_generation.sandbox.supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        supervisor.stdin.write(json.dumps(job).encode())
        supervisor.stdin.close()
        _wait_until(lambda: len(_guests(tmp_path)) == 2)
        supervisor.kill()
    _wait_until(lambda: not _guests(tmp_path))


def _guests(folder: Path) -> list[Path]:
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [it for it in processes if str(folder).encode() in _command_line(it)]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not _sound, reason="no backend contains code here")
def test_one_sound_backend_is_chosen() -> None:
    assert probe.choose_backend() == _sound[0]


def test_a_backend_that_lets_one_attempt_through_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_guests(*args: object, **kwargs: object) -> runner.Outcome:
        return runner.Outcome(
            report=tuple(
                {"attempt": attempt.__name__, "managed": attempt is escape.read_file}
                for attempt in escape.ATTEMPTS
            )
        )

    monkeypatch.setattr(probe, "run_guests", run_guests)
    verdict = probe.probe.__wrapped__("sandlock")
    assert not verdict.contains
    assert verdict.escapes == ("read_file",)


def test_a_guest_that_denies_its_escape_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_guests(
        backend: str, roles: list[str], limits: Limits, folder: Path, **kwargs: object
    ) -> runner.Outcome:
        (folder.parent / "secret").unlink()
        (folder.parent / "written").touch()
        return runner.Outcome(
            report=tuple({"attempt": it.__name__, "managed": False} for it in escape.ATTEMPTS)
        )

    monkeypatch.setattr(probe, "run_guests", run_guests)
    assert probe.probe.__wrapped__("sandlock").escapes == ("delete_file", "write_file")


def test_a_probe_that_does_not_finish_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "run_guests", lambda *a, **k: runner.Outcome())
    assert not probe.probe.__wrapped__("sandlock").contains


def test_no_backend_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BACKENDS", {"sandlock": None})
    monkeypatch.setattr(probe, "probe", lambda name: probe.Verdict(name, error="no Landlock"))
    with pytest.raises(SandboxUnavailable, match="no Landlock"):
        probe.choose_backend.__wrapped__()


def test_every_attempt_succeeds_where_nothing_is_contained(tmp_path: Path) -> None:
    """The probe's attempts are real: without a sandbox they get through."""
    script = """
import json, sys
from pathlib import Path
from gptflow_code_generation.sandbox.guest import escape
targets = json.loads(Path('targets.json').read_text())
done = [a.__name__ for a in escape.ATTEMPTS if a is not escape.raise_limits and a(targets)]
print(json.dumps(done))
"""
    with probe._bait(tmp_path) as bait:
        work = tmp_path / "work"
        work.mkdir()
        (work / "targets.json").write_text(json.dumps(bait.targets))
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=work,
            env={probe._VARIABLE: "x"},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            line = process.stdout.readline()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()
        expected = {it.__name__ for it in escape.ATTEMPTS} - {"raise_limits"}
        assert set(json.loads(line)) == expected
        assert set(bait.taken()) == {
            "connect_tcp",
            "send_udp",
            "connect_unix",
            "write_file",
            "delete_file",
            "signal_others",
        }


@pytest.mark.skipif(shutil.which("bwrap") is not None, reason="bwrap is installed")
def test_bubblewrap_that_is_not_installed_is_rejected() -> None:
    assert "not installed" in str(probe.probe("bubblewrap"))
