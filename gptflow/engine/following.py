"""Following: waiting a step for the beginning of a prompt that somebody else computes already.

After a cold start many requests with the same template arrive at once. The first computes the
template's rows; the others get their slots, and copy those rows a step later.

A sequence that waits may lead others only to beginnings longer than the one it waits for. So
along any chain of waiting the beginnings get shorter, and whoever stands at its end computes:
nobody waits for ever.
"""

from __future__ import annotations

from gptflow.engine.prefix import Ids, Scope
from gptflow.engine.sequence import Sequence
from gptflow.engine.waiting import RANK

Beginning = tuple[Scope, Ids]


class Following:
    """Who computes which beginning, and who waits for it. All of them hold slots."""

    def __init__(self) -> None:
        self._leaders: dict[Beginning, Sequence] = {}
        self._led: dict[Sequence, list[Beginning]] = {}
        self._followed: dict[Sequence, Beginning] = {}  # in the order of their admission

    def __len__(self) -> int:
        """How many sequences it knows of."""
        return len(self._led.keys() | self._followed.keys())

    def start(self, sequence: Sequence) -> int:
        """Take in a sequence that has just got a slot, with what the cache had for it.

        Returns:
            How many tokens it is going to copy from another one; 0 if it need not wait.
        """
        prefix = sequence.prefix
        if prefix is None:
            return 0
        coming = 0
        for scope, tokens in sorted(
            prefix.parts(sequence.done, len(prefix.ids)), key=lambda part: -part[1]
        ):
            beginning = scope, prefix.ids[:tokens]
            leader = self._leaders.get(beginning)
            if leader is sequence:
                continue
            # Nobody waits for one that has less urgent rows to compute.
            if (
                leader is not None
                and leader.done < tokens
                and RANK[leader.job_class] <= RANK[sequence.job_class]
            ):
                self._followed[sequence] = beginning
                coming = tokens
                break
            self._leaders[beginning] = sequence
            self._led.setdefault(sequence, []).append(beginning)
        return coming

    def follows(self, sequence: Sequence) -> bool:
        """Whether it has been waiting for another one, until now at least."""
        return sequence in self._followed

    def waits(self, sequence: Sequence) -> bool:
        """Whether what it waits for is still being computed."""
        beginning = self._followed[sequence]
        leader = self._leaders.get(beginning)
        return leader is not None and leader.done < len(beginning[1])

    def stop(self, sequence: Sequence) -> None:
        """It follows nobody any more, and goes on by itself."""
        self._followed.pop(sequence, None)

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence that loses its slot.

        Where it had not come to the end of a beginning, the most urgent of those that waited
        for it computes that in its place, and the others wait for this one.
        """
        self._followed.pop(sequence, None)
        orphaned: set[Beginning] = set()
        for beginning in self._led.pop(sequence, ()):
            if self._leaders.get(beginning) is sequence:
                del self._leaders[beginning]
                if sequence.done < len(beginning[1]):
                    orphaned.add(beginning)
        if not orphaned:
            return
        left = [other for other, theirs in self._followed.items() if theirs in orphaned]
        for other in left:
            del self._followed[other]
        for other in sorted(left, key=lambda other: RANK[other.job_class]):
            self.start(other)
