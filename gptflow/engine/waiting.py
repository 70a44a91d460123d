"""Who waits for a slot: classes above fair shares.

Interactive sequences go before standard ones, these before batch ones. So that none of them
waits for ever, a class that has been passed over eight times has the next turn: while there is
no end of more urgent work, each class that waits still gets a tenth of the admissions.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

from gptflow.engine.fairness import FairQueue
from gptflow.engine.sequence import Sequence
from gptflow.request import JobClass

CLASSES: tuple[JobClass, ...] = get_args(JobClass)
"""The most urgent first."""

RANK = {job_class: rank for rank, job_class in enumerate(CLASSES)}

_PATIENCE = 8
"""Times that a class is passed over before it has a turn."""


class Turn(NamedTuple):
    """Whose turn it is. `rank` is that of its class, or the highest one after a long wait."""

    rank: int
    sequence: Sequence


class Waiting:
    """Sequences without a slot, by class, share, deadline and arrival."""

    def __init__(self) -> None:
        self._queues = {job_class: FairQueue() for job_class in CLASSES}
        self._passed = dict.fromkeys(CLASSES, 0)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def by_class(self) -> dict[JobClass, int]:
        """How many wait in each class."""
        return {job_class: len(queue) for job_class, queue in self._queues.items()}

    def push(self, sequence: Sequence, *, begun: bool = False) -> None:
        """Let a sequence wait; one whose request has `begun` goes first in its share."""
        self._queues[sequence.job_class].push(sequence, begun=begun)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence, wherever in the queue it is."""
        self._queues[sequence.job_class].remove(sequence)

    def peek(self) -> Turn | None:
        """Whose turn it is; None if nobody waits."""
        waiting = [job_class for job_class, queue in self._queues.items() if queue]
        if not waiting:
            return None
        patient = max(waiting, key=self._passed.__getitem__)
        aged = self._passed[patient] >= _PATIENCE
        job_class = patient if aged else waiting[0]
        sequence = self._queues[job_class].peek()
        assert sequence is not None
        return Turn(0 if aged else RANK[job_class], sequence)

    def admit(self, sequence: Sequence) -> None:
        """Take out the one whose turn it was, and count those that were passed over."""
        self.remove(sequence)
        for job_class, queue in self._queues.items():
            if job_class == sequence.job_class or not queue:
                self._passed[job_class] = 0
            elif RANK[job_class] > RANK[sequence.job_class]:
                self._passed[job_class] += 1

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Count work done for a sequence on its share's account."""
        self._queues[sequence.job_class].charge(sequence.share, tokens)
