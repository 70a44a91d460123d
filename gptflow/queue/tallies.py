"""Tallies: what a worker counts of the jobs that it runs, by plugin and class."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from gptflow.histogram import Histogram

UNKNOWN = "unknown"
"""In place of a plugin that is not installed: names in messages come from outside."""


class Tallies:
    """Counts since the worker's start. Thread-safe.

    A row of a batch counts as a job does. Outcomes are the states in which jobs end, and
    `retried`, `handed_back` (when the worker stops) and `refused` (another worker has it).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three
        self._outcomes: Counter[tuple[str, str, str]] = Counter()
        self._queued: dict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self._running: dict[tuple[str, str], Histogram] = defaultdict(Histogram)

    def start(self, plugin: str, job_class: str, queued: float) -> None:
        """A job, or a message of a batch, begins after so many seconds in the queue."""
        with self._lock:
            self._queued[plugin, job_class].add(max(0.0, queued))

    def end(
        self, plugin: str, job_class: str, outcomes: Iterable[tuple[str, float | None]]
    ) -> None:
        """Jobs have ended, each after so many seconds; None where it did not run."""
        with self._lock:
            running = self._running[plugin, job_class]
            for outcome, seconds in outcomes:
                self._outcomes[plugin, job_class, outcome] += 1
                if seconds is not None:
                    running.add(seconds)

    @property
    def outcomes(self) -> dict[tuple[str, str, str], int]:
        """How many, by plugin, class and outcome."""
        with self._lock:
            return dict(self._outcomes)

    @property
    def queued(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Histograms of the seconds in the queue, by plugin and class."""
        with self._lock:
            return {labels: found.as_dict() for labels, found in self._queued.items()}

    @property
    def running(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Histograms of the seconds that jobs ran, by plugin and class."""
        with self._lock:
            return {labels: found.as_dict() for labels, found in self._running.items()}

    def totals(self) -> dict[str, int]:
        """How many, by outcome."""
        found: Counter[str] = Counter()
        for (_, _, outcome), number in self.outcomes.items():
            found[outcome] += number
        return dict(found)
