"""Probes: whether a worker lives, and whether it works, for whatever supervises it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

_TICK = 1.0

SILENCE = 10.0
"""Seconds without an answer of the ledger after which it counts as unreachable."""


class Pulse:
    """Shows that an event loop turns.

    Args:
        call_later: the loop's; see `gptflow.queue.runtime.Runtime.call_later`.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._call_later = call_later
        self._at = time.monotonic()
        self._beat()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._at

    def _beat(self) -> None:
        self._at = time.monotonic()
        self._call_later(_TICK, self._beat)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What is asked of a worker, each by a call that returns at once.

    Attributes:
        healthy: false once the engine has stopped for good.
        stalled: seconds for which the engine has had work and has not made a step.
        pulse: seconds since the event loop turned.
        silence: seconds since the ledger answered.
        draining: whether it takes no jobs any more.
    """

    healthy: Callable[[], bool]
    stalled: Callable[[], float]
    pulse: Callable[[], float]
    silence: Callable[[], float]
    draining: Callable[[], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what there is to say of it."""

    name: str
    ok: bool
    detail: str


class Probes:
    """Answers for a worker from its start on; until it has `vitals`, its model is being loaded.

    Args:
        limit: seconds without a step of the engine or a turn of the loop that are too many.
    """

    def __init__(self, limit: float) -> None:
        self.vitals: Vitals | None = None
        self._limit = limit

    def live(self) -> list[Check]:
        """Whether it should be restarted if not. Never asks the ledger: that would not help."""
        vitals = self.vitals
        if vitals is None:
            return [Check("process", True, "starting")]
        return [
            self._young("event loop", vitals.pulse(), "has not turned"),
            self._engine(vitals),
        ]

    def ready(self) -> list[Check]:
        """Whether it takes jobs."""
        vitals = self.vitals
        if vitals is None:
            return [Check("model", False, "it is being loaded")]
        silence = vitals.silence()
        return [
            Check("model", True, "loaded"),
            self._engine(vitals),
            Check("ledger", silence < SILENCE, _ago(silence)),
            Check("draining", not vitals.draining(), "yes" if vitals.draining() else "no"),
        ]

    def _engine(self, vitals: Vitals) -> Check:
        if not vitals.healthy():
            return Check("engine", False, "has stopped for good")
        return self._young("engine", vitals.stalled(), "has not moved with work waiting")

    def _young(self, name: str, age: float, complaint: str) -> Check:
        late = age >= self._limit
        return Check(name, not late, f"{complaint} for {age:.1f} s" if late else "moves")


def _ago(seconds: float) -> str:
    return "has not answered yet" if seconds == float("inf") else f"answered {seconds:.1f} s ago"
