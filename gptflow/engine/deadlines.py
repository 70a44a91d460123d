"""Deadlines: which requests are too late to answer."""

from __future__ import annotations

import heapq
import itertools
import math
import weakref
from collections.abc import Iterator

from gptflow.engine.pending import Pending
from gptflow.errors import InvalidInput
from gptflow.request import Request


def check(request: Request) -> None:
    """Refuse a deadline that is no time. An infinite one is as good as none.

    Raises:
        InvalidInput: it is not a number.
    """
    if request.deadline is not None and math.isnan(request.deadline):
        raise InvalidInput("The deadline is not a number.", hint="Give Unix time, in seconds.")


class Deadlines:
    """The requests that have one, the earliest first."""

    def __init__(self) -> None:
        # Weak, so that an answered request need not stay until its deadline.
        self._heap: list[tuple[float, int, weakref.ref[Pending]]] = []
        self._tie = itertools.count()
        self._next_sweep = 64

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, pending: Pending) -> None:
        """Watch a request, if it has a deadline."""
        deadline = pending.request.deadline
        if deadline is None or deadline == math.inf:
            return
        heapq.heappush(self._heap, (deadline, next(self._tie), weakref.ref(pending)))
        if len(self._heap) > self._next_sweep:  # most of them may have been answered
            self._heap = [entry for entry in self._heap if entry[2]() is not None]
            heapq.heapify(self._heap)
            self._next_sweep = 2 * len(self._heap) + 64

    def passed(self, now: float) -> Iterator[Pending]:
        """Take out the requests whose deadline has passed and that have no answer yet."""
        while self._heap and self._heap[0][0] <= now:
            pending = heapq.heappop(self._heap)[2]()
            if pending is not None and not pending.closed:
                yield pending
