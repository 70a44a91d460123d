"""Running guests from the worker: one call, one outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptflow_code_generation.sandbox.backends import End
from gptflow_code_generation.sandbox.limits import Limits

_SLACK_S = 5.0
"""What the supervisor may need beyond the guests' time, to start and to clean up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run left behind.

    Attributes:
        report: the lines that the first role reported.
        ends: how each role's process ended.
        late: whether the wall clock ran out.
        error: why there was no run at all; None if there was one.
    """

    report: tuple[Mapping[str, Any], ...] = ()
    ends: Mapping[str, End] = dataclasses.field(default_factory=dict)
    late: bool = False
    wall_s: float = 0.0
    error: str | None = None


def run_guests(
    backend: str,
    roles: Sequence[str],
    limits: Limits,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run one contained process per role, and wait for all of them.

    Args:
        folder: holds one sub-folder per role.
        environment: of the supervisor; guests always get an empty one.
    """
    job = {
        "backend": backend,
        "roles": list(roles),
        "limits": dataclasses.asdict(limits),
        "folder": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "gptflow_code_generation.sandbox.supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment or {}),
        start_new_session=True,
    )
    with process:
        try:
            output, errors = process.communicate(json.dumps(job).encode(), limits.wall_s + _SLACK_S)
        except subprocess.TimeoutExpired:
            return Outcome(late=True, wall_s=limits.wall_s + _SLACK_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    try:
        answer = json.loads(output)
    except ValueError:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        return Outcome(error=f"the supervisor ended with {process.returncode}: {last[0]}")
    if "error" in answer:
        return Outcome(error=answer["error"])
    ends = {role: End(**end) for role, end in answer.pop("ends").items()}
    return Outcome(ends=ends, **{**answer, "report": tuple(answer["report"])})
