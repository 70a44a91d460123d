"""One candidate's trial: its code against its tests, and what came of it."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gptflow_code_generation.sandbox.backends import End
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.runner import Outcome, run_guests

Status = Literal["passed", "failed", "syntax", "timeout", "memory", "crash", "blocked"]

_REFUSED = ("PermissionError", "BlockingIOError")
"""What Python raises for a system call that the sandbox refuses."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A trial's result.

    passed: every test passed. failed: one did not, or the code raised while it was loaded.
    syntax: the code does not parse. timeout, memory: a limit was reached. crash: the
    candidate's process ended before its tests did. blocked: the sandbox refused something
    that the code needed, or there is no sandbox and nothing was run.
    """

    passed: int
    failed: int
    status: Status
    detail: str = ""
    wall_s: float = 0.0


def run_trial(
    backend: str, code: str, tests: Sequence[str], *, imports: str = "", limits: Limits
) -> Report:
    """Run the tests against the code, each side contained on its own.

    Args:
        imports: statements that the tests need, run on the judge's side.
    """
    with tempfile.TemporaryDirectory(prefix="gptflow-trial-") as name:
        folder = Path(name)
        _put(folder / "candidate" / "code.py", code)
        _put(
            folder / "judge" / "tests.json", json.dumps({"tests": list(tests), "imports": imports})
        )
        outcome = run_guests(backend, ["judge", "candidate"], limits, folder)
    outcomes = [line["test"] for line in outcome.report if "test" in line]
    passed = sum(error is None for error in outcomes)
    status, detail = _status(outcome, outcomes, tests, limits)
    return Report(
        passed=passed,
        failed=len(tests) - passed,
        status=status,
        detail=detail,
        wall_s=outcome.wall_s,
    )


def _put(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")


def _status(
    outcome: Outcome,
    outcomes: Sequence[Mapping[str, Any] | None],
    tests: Sequence[str],
    limits: Limits,
) -> tuple[Status, str]:
    """The first of these that applies; passes are counted by the judge alone."""
    if outcome.error is not None:
        return "blocked", outcome.error
    if len(outcomes) == len(tests) and not any(outcomes):
        return "passed", ""
    loading = next((line["load"] for line in outcome.report if "load" in line), None)
    errors = [(test, error) for test, error in zip(tests, outcomes, strict=False) if error]
    ends = outcome.ends.values()
    if outcome.late or any(_out_of_time(end, outcome.wall_s, limits) for end in ends):
        return "timeout", f"more than {limits.cpu_s} s of processor time or {limits.wall_s:g} s"
    if any(end.how == "killed" for end in ends) or "MemoryError" in _kinds(loading, errors):
        return "memory", f"more than {limits.memory_bytes >> 20} MiB"
    if loading is not None:
        if loading["error"] in ("SystemExit", "KeyboardInterrupt"):
            return "crash", f"{loading['error']} before the tests"
        status: Status = "blocked" if loading["error"] in _REFUSED else "failed"
        return status, f"while loading: {_text(loading)}"
    if len(outcomes) < len(tests):
        return "crash", f"the process ended during test {len(outcomes) + 1}: {_end(outcome)}"
    blocked = next((pair for pair in errors if pair[1]["error"] in _REFUSED), None)
    test, error = blocked or errors[0]
    return ("blocked" if blocked else "failed"), f"{test}: {_text(error)}"


def _out_of_time(end: End, wall_s: float, limits: Limits) -> bool:
    if end.how == "signal":
        return end.number == signal.SIGXCPU
    # Code that ignores the warning is killed one processor second later.
    return end.how == "timeout" or (end.how == "killed" and wall_s >= limits.cpu_s)


def _kinds(
    loading: Mapping[str, Any] | None, errors: Sequence[tuple[str, Mapping[str, Any]]]
) -> set[str]:
    return {error["error"] for error in (loading, *(error for _, error in errors)) if error}


def _text(error: Mapping[str, Any]) -> str:
    return f"{error['error']}: {error['message']}" if error["message"] else str(error["error"])


def _end(outcome: Outcome) -> str:
    end = outcome.ends.get("candidate", End("killed"))
    if end.how == "signal":
        return signal.Signals(end.number).name
    return f"exit code {end.number}" if end.how == "exit" else end.how
