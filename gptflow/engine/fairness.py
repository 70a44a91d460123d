"""Fair shares: whose sequence goes next among those of one class that wait.

Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): each
share has a counter of the work done for it, and the share with the lowest one goes next. A
share that comes back after a pause is lifted to the lowest counter of those that wait, so that
nobody saves up a claim while being away. Within a share the earliest deadline goes first, then
who came first.

Choosing, adding and removing cost O(log n) comparisons, however many wait: what was removed
stays in its heap until it comes up, or until most of a heap is such.
"""

from __future__ import annotations

import heapq
import itertools

from gptflow.engine.sequence import Sequence, Share

_REMEMBERED = 1024
"""Counters of shares that have nothing waiting to keep at least."""

_tickets = itertools.count()


class _Queue:
    """The waiting sequences of one share."""

    def __init__(self) -> None:
        self._heap: list[tuple[bool, float, int, Sequence]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence, *, begun: bool) -> None:
        sequence.ticket = next(_tickets)
        heapq.heappush(self._heap, (not begun, sequence.deadline, sequence.ticket, sequence))
        self._length += 1

    def peek(self) -> Sequence:
        while self._heap[0][2] != self._heap[0][3].ticket:
            heapq.heappop(self._heap)
        return self._heap[0][3]

    def remove(self, sequence: Sequence) -> None:
        sequence.ticket = None
        self._length -= 1
        if self._length == 0:
            self._heap.clear()
        elif len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].ticket]
            heapq.heapify(self._heap)


class FairQueue:
    """Waiting sequences of many shares."""

    def __init__(self) -> None:
        self._queues: dict[Share, _Queue] = {}
        # One entry per queue. Its counter may have grown since; it never falls.
        self._order: list[tuple[int, int, Share]] = []
        self._counters: dict[Share, int] = {}
        self._last: Share = ("", "")
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence, *, begun: bool = False) -> None:
        """Add a sequence; those of requests that have `begun` go first in their share."""
        share = sequence.share
        if not self._queues.get(share):
            self._lift(share)
        self._queues[share].push(sequence, begun=begun)
        self._length += 1

    def peek(self) -> Sequence | None:
        """The sequence to go next; None if nothing waits."""
        share = self._next_share()
        return None if share is None else self._queues[share].peek()

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that waits here."""
        self._queues[sequence.share].remove(sequence)
        self._length -= 1

    def counter(self, share: Share) -> int:
        """The work done for a share, as far as it is remembered."""
        return self._counters.get(share, 0)

    def charge(self, share: Share, tokens: int) -> None:
        """Count work done for a share."""
        self._counters[share] = self._counters.get(share, 0) + tokens
        self._last = share

    def _lift(self, share: Share) -> None:
        """Let a share join those that wait."""
        lowest = self._next_share()
        floor = self._counters.get(self._last if lowest is None else lowest, 0)
        self._counters[share] = max(self._counters.get(share, 0), floor)
        if share not in self._queues:
            self._queues[share] = _Queue()
            heapq.heappush(self._order, (self._counters[share], next(_tickets), share))
        if len(self._counters) > 2 * (_REMEMBERED + len(self._queues)):
            self._forget(floor)

    def _next_share(self) -> Share | None:
        while self._order:
            counter, tie, share = self._order[0]
            if not self._queues[share]:
                heapq.heappop(self._order)
                del self._queues[share]
            elif counter < self._counters[share]:
                heapq.heapreplace(self._order, (self._counters[share], tie, share))
            else:
                return share
        return None

    def _forget(self, floor: int) -> None:
        """Drop the counters that lifting would replace anyway, then the lowest of the rest."""
        absent = [
            (counter, share)
            for share, counter in self._counters.items()
            if share not in self._queues and share != self._last
        ]
        highest = heapq.nlargest(_REMEMBERED, (entry for entry in absent if entry[0] > floor))
        kept = {share for _, share in highest}
        for _, share in absent:
            if share not in kept:
                del self._counters[share]
