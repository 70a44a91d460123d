"""Whether a worker lives and works, by what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptflow.queue.probes import Check, Probes, Pulse, Vitals


def worker(**wrong: Any) -> Probes:
    fine: dict[str, Any] = {
        "healthy": True,
        "stalled": 0.0,
        "pulse": 0.5,
        "silence": 0.5,
        "draining": False,
    }
    probes = Probes(20.0)
    values = {name: (lambda value=value: value) for name, value in (fine | wrong).items()}
    probes.vitals = Vitals(**values)
    return probes


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


@pytest.mark.parametrize(
    ("wrong", "dead", "unready"),
    [
        ({}, [], []),
        ({"stalled": 19.0, "pulse": 19.0}, [], []),
        ({"stalled": 20.5}, ["engine"], ["engine"]),
        ({"pulse": 20.5}, ["event loop"], []),
        ({"healthy": False}, ["engine"], ["engine"]),
        ({"silence": 60.0}, [], ["ledger"]),
        ({"silence": float("inf")}, [], ["ledger"]),
        ({"draining": True}, [], ["draining"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(wrong: Any, dead: list[str], unready: list[str]) -> None:
    assert failed(worker(**wrong).live()) == dead
    assert failed(worker(**wrong).ready()) == unready


def test_a_worker_that_loads_its_model_lives_and_is_not_ready() -> None:
    assert failed(Probes(20).live()) == []
    assert failed(Probes(20).ready()) == ["model"]


def test_a_pulse_is_as_old_as_the_last_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    due: list[Callable[[], None]] = []
    pulse = Pulse(lambda _seconds, call: due.append(call))
    now = 107.0
    assert pulse.age == 7
    due.pop()()
    assert pulse.age == 0
    assert len(due) == 1
