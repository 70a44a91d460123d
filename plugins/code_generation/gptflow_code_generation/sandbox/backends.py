"""The two programs that contain a process, behind one interface.

sandlock (Landlock and seccomp; Linux 6.7 or later) needs neither privileges nor namespaces.
bubblewrap needs user namespaces, and a worker that does not run as root: the kernel does not
hold root to a number of processes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from gptflow_code_generation.sandbox import interpreter
from gptflow_code_generation.sandbox.limits import Limits

Stdio = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a contained process ended: its exit code, or the signal's number if that is known."""

    how: Literal["exit", "signal", "killed", "timeout"]
    number: int = 0


class Box(Protocol):
    """A contained process."""

    def wait(self, seconds: float) -> End:
        """Its end, which comes after this many seconds at the latest."""
        ...


class Backend(Protocol):
    """A way to start contained processes."""

    name: str

    def start(self, role: str, limits: Limits, work: Path, stdio: Stdio) -> Box:
        """Start a guest that sees `work` as its folder. Writes to it are thrown away."""
        ...


class Sandlock:
    """Landlock for files, signals and sockets; seccomp for the rest."""

    name = "sandlock"

    def start(self, role: str, limits: Limits, work: Path, stdio: Stdio) -> Box:
        import sandlock

        box = sandlock.Sandbox(
            fs_readable=[str(path) for path in interpreter.readable_paths()],
            fs_writable=[str(work), os.devnull],
            # The overlay counts what is written, and is dropped at the end.
            workdir=str(work),
            fs_storage=str(work.with_name(f"{work.name}.overlay")),
            max_disk=limits.disk_bytes,
            on_exit=sandlock.BranchAction.ABORT,
            on_error=sandlock.BranchAction.ABORT,
            cwd=str(work),
            clean_env=True,
            max_processes=1,
            # Memory is bounded by the guest's own limit, at which Python can raise MemoryError;
            # sandlock's would kill it first, for it counts requests that the kernel refuses.
        )
        command = interpreter.command(role, json.dumps(limits.as_dict()), str(work))
        with _standard_streams(stdio):
            return _SandlockBox(box.popen(command))


class _SandlockBox:
    def __init__(self, process: Any) -> None:
        self._process = process

    def wait(self, seconds: float) -> End:
        import sandlock

        result = self._process.wait(timeout=max(seconds, 0.001))
        match result.reason:
            case sandlock.ExitReason.EXITED:
                return End("exit", result.exit_code)
            case sandlock.ExitReason.SIGNALED:
                return End("signal", result.signal)
            case sandlock.ExitReason.TIMEOUT:
                return End("timeout")
            case _:
                return End("killed")


class Bubblewrap:
    """Namespaces for everything; a bound on processes and memory by the guest's own limits."""

    name = "bubblewrap"

    def start(self, role: str, limits: Limits, work: Path, stdio: Stdio) -> Box:
        program = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        if program is None:
            raise FileNotFoundError("bwrap is not installed")
        # A worker's own processes count too, but not in the namespace that bwrap makes.
        settings = json.dumps({**limits.as_dict(), "processes": 0})
        inside = "/tmp/work"  # noqa: S108  on a file system of the box's own
        options = ["--unshare-all", "--clearenv", "--die-with-parent", "--new-session"]
        options += ["--cap-drop", "ALL", "--hostname", "sandbox"]
        options += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]  # noqa: S108
        for path in interpreter.readable_paths():
            options += ["--ro-bind", str(path), str(path)]
        options += ["--dev-bind", os.devnull, os.devnull]
        for path in work.iterdir():
            options += ["--ro-bind", str(path), f"{inside}/{path.name}"]
        command = interpreter.command(role, settings, inside)
        return _ProcessBox(
            subprocess.Popen(
                [program, *options, "--chdir", inside, "--", *command],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                env={},
                start_new_session=True,
            )
        )


class _ProcessBox:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait(self, seconds: float) -> End:
        try:
            code = self._process.wait(max(seconds, 0.001))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return End("timeout")
        # bwrap exits like a shell does: with 128 and the signal's number.
        return End("signal", code - 128) if code > 128 else End("exit", code)


BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (Sandlock(), Bubblewrap())}
"""All that are known, the preferred one first."""


@contextmanager
def _standard_streams(stdio: Stdio) -> Iterator[None]:
    """Put other files in place of this process's standard streams, for a child to inherit."""
    saved = [os.dup(fd) for fd in (0, 1, 2)]
    try:
        for fd, other in enumerate(stdio):
            os.dup2(other, fd)
        yield
    finally:
        for fd, original in enumerate(saved):
            os.dup2(original, fd)
            os.close(original)
