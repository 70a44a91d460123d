"""Tally: what a fault test counted, in Jepsen's words."""

from __future__ import annotations

import dataclasses
from typing import Any

TALLIES: list[str] = []
"""What the tests of this run have counted, for the end of pytest's report."""


@dataclasses.dataclass(kw_only=True)
class Tally:
    """Counts of jobs.

    Attributes:
        submitted: acknowledged by the server.
        recorded: of these, that have an outcome.
        lost: of these, that have none.
        doubled: that have more than one outcome, or one that changed.
        recovered: that have an outcome although a claim or a doorbell of theirs was lost.
        more: what else matters, by name.
    """

    row: str
    submitted: int
    recorded: int
    lost: int
    doubled: int
    recovered: int
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, **more: Any) -> None:
        self.more |= {name.replace("_", " "): value for name, value in more.items()}

    def tell(self) -> str:
        """One line; it is printed now, and again at the end of pytest's report."""
        names = ("submitted", "recorded", "lost", "doubled", "recovered")
        counts = {name: getattr(self, name) for name in names} | self.more
        parts = [f"{name} {_text(value)}" for name, value in counts.items()]
        line = f"{self.row}: {', '.join(parts)}"
        TALLIES.append(line)
        print(line)
        return line


def _text(value: Any) -> str:
    return f"{value:.3g} s" if isinstance(value, float) else str(value)
