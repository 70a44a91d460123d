"""Finding out whether a backend contains code, by trying to get out of it.

A backend is trusted because fifteen attempts to escape failed on this machine a moment ago,
not because of its name: kernels, containers and security modules differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptflow.errors import SandboxUnavailable
from gptflow_code_generation.sandbox.backends import BACKENDS
from gptflow_code_generation.sandbox.guest.escape import ATTEMPTS
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.runner import run_guests

_VARIABLE = "GPTFLOW_PROBE_SECRET"
_LIMITS = Limits(cpu_s=2, memory_bytes=256 * 1024 * 1024)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found: the attempts that got out, or why there could be none."""

    backend: str
    escapes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def contains(self) -> bool:
        return not self.escapes and self.error is None

    def __str__(self) -> str:
        if self.contains:
            return f"{self.backend}: contains code"
        return f"{self.backend}: {self.error or 'did not stop ' + ', '.join(self.escapes)}"


@functools.cache
def probe(backend: str) -> Verdict:
    """Try to escape from a backend; about 0.3 s, once per process."""
    with tempfile.TemporaryDirectory(prefix="gptflow-probe-") as name, _bait(Path(name)) as bait:
        folder = Path(name, "boxes")
        (folder / "escape").mkdir(parents=True)
        (folder / "escape" / "targets.json").write_text(json.dumps(bait.targets))
        outcome = run_guests(
            backend, ["escape"], _LIMITS, folder, environment={_VARIABLE: "secret"}
        )
        if outcome.error is not None:
            return Verdict(backend, error=outcome.error)
        lines = {line["attempt"]: line["managed"] for line in outcome.report if "attempt" in line}
        if set(lines) != {attempt.__name__ for attempt in ATTEMPTS}:
            noise = [line["noise"] for line in outcome.report if "noise" in line][-1:]
            return Verdict(backend, error=": ".join(("the probe did not run to its end", *noise)))
        # What a guest says of itself is checked against what happened out here. Of sockets only
        # that counts: in a network of its own, a guest reaches nobody and cannot tell.
        managed = {name for name, success in lines.items() if success} - set(bait.listeners)
        managed |= set(bait.taken())
    return Verdict(backend, escapes=tuple(sorted(managed)))


@functools.cache
def choose_backend() -> str:
    """The first backend that contains code on this machine.

    Raises:
        SandboxUnavailable: none does, and why each one does not.
    """
    verdicts = []
    for name in BACKENDS:
        verdicts.append(probe(name))
        if verdicts[-1].contains:
            return name
    raise SandboxUnavailable(
        f"No sandbox contains code here ({'; '.join(map(str, verdicts))}).",
        hint="Linux 6.7 with Landlock serves sandlock; bubblewrap needs a worker that is not root.",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Bait:
    """Things to steal, reach or break, and the means to see whether somebody did."""

    targets: Mapping[str, Any]
    listeners: Mapping[str, socket.socket]
    victim: subprocess.Popen[bytes]

    def taken(self) -> Iterator[str]:
        for attempt, listener in self.listeners.items():
            if select.select([listener], [], [], 0)[0]:
                yield attempt
        if Path(self.targets["written_file"]).exists():
            yield "write_file"
        if not Path(self.targets["secret_file"]).exists():
            yield "delete_file"
        if self.victim.poll() is not None:
            yield "signal_others"


@contextlib.contextmanager
def _bait(folder: Path) -> Iterator[_Bait]:
    secret = folder / "secret"
    secret.write_text("secret", encoding="utf-8")
    with contextlib.ExitStack() as stack:
        listeners = {
            "connect_tcp": stack.enter_context(socket.create_server(("127.0.0.1", 0))),
            "send_udp": stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
            "connect_unix": stack.enter_context(socket.socket(socket.AF_UNIX)),
        }
        listeners["send_udp"].bind(("127.0.0.1", 0))
        listeners["connect_unix"].bind(str(folder / "socket"))
        listeners["connect_unix"].listen()
        victim = stack.enter_context(subprocess.Popen(["/bin/sleep", "60"], env={}))
        stack.callback(victim.kill)
        targets = {
            "secret_file": str(secret),
            "written_file": str(folder / "written"),
            "tcp_port": listeners["connect_tcp"].getsockname()[1],
            "udp_port": listeners["send_udp"].getsockname()[1],
            "unix_socket": str(folder / "socket"),
            "secret_variable": _VARIABLE,
            "victim": victim.pid,
            "file_bytes": _LIMITS.file_bytes,
            "memory_bytes": _LIMITS.memory_bytes,
        }
        yield _Bait(targets, listeners, victim)
