"""Where a contained process starts: `python -I -S main.py ROLE LIMITS WORK_FOLDER`.

Roles: `candidate`, `judge`, and `escape` for the probe. Standard input and output are the
wire, standard error is for the report; all three are out of reach before any code is loaded.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# The packages above this folder are out of a guest's sight: stand-ins let its modules be
# imported under their full names all the same.
for _name in ("gptflow_code_generation", "gptflow_code_generation.sandbox"):
    sys.modules[_name] = ModuleType(_name)
_guest = ModuleType("gptflow_code_generation.sandbox.guest")
_guest.__path__ = [str(Path(__file__).resolve().parent)]
sys.modules[_guest.__name__] = _guest

from gptflow_code_generation.sandbox.guest import candidate, escape, judge  # noqa: E402
from gptflow_code_generation.sandbox.guest.wire import Channel  # noqa: E402


class _Discard(io.TextIOBase):
    """Standard output that goes nowhere, however much there is of it."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def _set_limits(limits: dict[str, Any]) -> None:
    cpu = int(limits["cpu_s"])
    ceilings = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if "processes" in limits:
        ceilings[resource.RLIMIT_NPROC] = limits["processes"]
    for kind, ceiling in ceilings.items():
        resource.setrlimit(kind, ceiling if isinstance(ceiling, tuple) else (ceiling, ceiling))


def main(role: str, limits: str, work: str) -> None:
    wire = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    report_fd = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), _Discard(), _Discard()
    _set_limits(json.loads(limits))

    def report(line: dict[str, Any]) -> None:
        os.write(report_fd, json.dumps(line).encode() + b"\n")

    match role:
        case "candidate":
            os.close(report_fd)
            candidate.run(wire, Path(work))
        case "judge":
            judge.run(wire, Path(work), report)
        case "escape":
            escape.run(Path(work), report)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # threads that generated code left behind are not waited for
