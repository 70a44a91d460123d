"""Who waits for a slot: classes above fair shares.

Interactive sequences go before standard ones, these before batch ones. So that none of them
waits for ever, a class that has been passed over eight times has the next turn: while there is
no end of more urgent work, each class that waits still gets a tenth of the admissions.

Whoever decodes waits in one line and whoever only reads a prompt in another, as they wait for
other slots. What a share has had counts in both.
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

_HELD = 64
"""Times after which nobody passes it any more, even if it finds no room."""


class Turn(NamedTuple):
    """Whose turn it is. `rank` is that of its class, or the highest one after a long wait."""

    rank: int
    sequence: Sequence


class _Line:
    """Those that wait for the same kind of slot."""

    def __init__(self) -> None:
        self.queues = {job_class: FairQueue() for job_class in CLASSES}
        self._passed = dict.fromkeys(CLASSES, 0)

    def turns(self) -> list[Turn]:
        """Whose turn it is and, where that one may find no room, who may go in its place."""
        waiting = [job_class for job_class, queue in self.queues.items() if queue]
        if not waiting:
            return []
        first = waiting[0]
        patient = max(waiting, key=self._passed.__getitem__)
        if self._passed[patient] < _PATIENCE:
            return [self._turn(first, RANK[first])]
        turns = [self._turn(patient, 0)]
        # One that is next waits until its memory is free, and others wait behind it: but not
        # interactive ones, which could have taken somebody's slot.
        if patient != first == CLASSES[0] and self._passed[patient] < _HELD:
            turns.append(self._turn(first, RANK[first]))
        return turns

    def admit(self, sequence: Sequence) -> None:
        self.queues[sequence.job_class].remove(sequence)
        for job_class, queue in self.queues.items():
            if job_class == sequence.job_class or not queue:
                self._passed[job_class] = 0
            elif RANK[job_class] > RANK[sequence.job_class]:
                self._passed[job_class] += 1

    def _turn(self, job_class: JobClass, rank: int) -> Turn:
        sequence = self.queues[job_class].peek()
        assert sequence is not None
        return Turn(rank, sequence)


class Waiting:
    """Sequences without a slot, by what they wait for, class, share, deadline and arrival."""

    def __init__(self) -> None:
        self._lines = {True: _Line(), False: _Line()}  # those that decode, and the others

    def __len__(self) -> int:
        return sum(len(queue) for line in self._lines.values() for queue in line.queues.values())

    def by_class(self) -> dict[JobClass, int]:
        """How many wait in each class."""
        return {
            job_class: sum(len(line.queues[job_class]) for line in self._lines.values())
            for job_class in CLASSES
        }

    def push(self, sequence: Sequence, *, begun: bool = False) -> None:
        """Let a sequence wait; one whose request has `begun` goes first in its share."""
        self._queue(sequence).push(sequence, begun=begun)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence, wherever in the queue it is."""
        self._queue(sequence).remove(sequence)

    def turns(self) -> list[Turn]:
        """Whose turn it is in each line, the most urgent first; of equal ones who had less."""
        lines = [turns for line in self._lines.values() if (turns := line.turns())]
        lines.sort(key=lambda turns: (turns[0].rank, self._had(turns[0].sequence)))
        return [turn for turns in lines for turn in turns]

    def admit(self, sequence: Sequence) -> None:
        """Take out the one whose turn it was, and count those that were passed over."""
        self._lines[sequence.decodes].admit(sequence)

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Count work done for a sequence on its share's account."""
        for line in self._lines.values():
            line.queues[sequence.job_class].charge(sequence.share, tokens)

    def _had(self, sequence: Sequence) -> int:
        return self._queue(sequence).counter(sequence.share)

    def _queue(self, sequence: Sequence) -> FairQueue:
        return self._lines[sequence.decodes].queues[sequence.job_class]
