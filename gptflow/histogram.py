"""Histogram: how often a measurement fell below each of a few bounds, since the start."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bounds that fit both a label that takes milliseconds and a night's batch."""


class Histogram:
    """Counts by bound, with the sum. Not thread-safe: its owner writes it alone, or with a lock.

    Unlike the percentiles of a window it can be added up over workers and over time.

    Args:
        bounds: upper ones, rising; what exceeds the last is counted, too.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bounds, the count of each and of what exceeds the last one, and the sum."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}
