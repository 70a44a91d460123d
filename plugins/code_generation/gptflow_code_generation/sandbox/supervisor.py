"""A process between the worker and the contained ones: `python -I -m ...sandbox.supervisor`.

It reads one `Job` as JSON from standard input, starts a guest per role, connects the judge's
and the candidate's standard streams to each other, ends everything in time, and writes what
happened to standard output. It never runs code that it was given. Being a process of its own,
it keeps forks and signal handling out of a worker full of threads, and takes everything
with it when it is killed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from gptflow_code_generation.sandbox.backends import BACKENDS, Box
from gptflow_code_generation.sandbox.limits import Limits

REPORT_BYTES = 256 * 1024
"""More than the judge writes about the most tests; a guest that writes more is stopped."""

_GRACE_S = 0.5
_PR_CAPBSET_DROP = 24


def supervise(backend: str, roles: list[str], limits: Limits, folder: Path) -> dict[str, Any]:
    """Run one guest per role, each in the sub-folder of that name.

    The first role's standard error is the report. Two roles get each other's output as input.
    """
    contain = BACKENDS[backend].start
    started = time.monotonic()
    report_in, report_out = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    inputs, outputs = [null, null], [null, null]
    if len(roles) == 2:
        inputs[0], outputs[1] = os.pipe()
        inputs[1], outputs[0] = os.pipe()
    boxes: dict[str, Box] = {}
    for index, role in enumerate(roles):
        stdio = (inputs[index], outputs[index], null if index else report_out)
        boxes[role] = contain(role, limits, folder / role, stdio)
    for fd in {report_out, null, *inputs, *outputs}:
        os.close(fd)
    report = _read(report_in, started + limits.wall_s)
    late = time.monotonic() >= started + limits.wall_s
    ends = {role: box.wait(0 if late else _GRACE_S) for role, box in boxes.items()}
    return {
        "report": report,
        "ends": {role: dataclasses.asdict(end) for role, end in ends.items()},
        "late": late,
        "wall_s": time.monotonic() - started,
    }


def _read(fd: int, deadline: float) -> list[dict[str, Any]]:
    """The lines of a report, as far as it got by the deadline."""
    data = b""
    while len(data) < REPORT_BYTES:
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(fd, 65536) if readable else b""
        if not chunk:
            break
        data += chunk
    return [_parse(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _parse(line: bytes) -> dict[str, Any]:
    """A line of the report; what Python itself wrote there, such as a traceback, is noise."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"noise": line.decode(errors="replace").strip()}


def _drop_capabilities() -> None:
    """Have children of root start without any of root's capabilities, such as raising limits."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def main() -> None:
    job = json.load(sys.stdin)
    if os.geteuid() == 0:
        _drop_capabilities()
    try:
        outcome = supervise(
            job["backend"], job["roles"], Limits(**job["limits"]), Path(job["folder"])
        )
    except Exception as error:  # noqa: BLE001  whatever a backend raises, the caller is told
        outcome = {"error": f"{type(error).__name__}: {error}"}
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
