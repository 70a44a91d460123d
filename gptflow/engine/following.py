"""Following: waiting a step for the beginning of a prompt that somebody else computes already.

After a cold start many requests with the same template arrive at once. The first computes the
template's rows; the others get their slots, and copy those rows a step later.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from gptflow.engine.prefix import Ids, Scope
from gptflow.engine.sequence import Sequence
from gptflow.engine.waiting import RANK

_LEADERS = 256
"""Beginnings to remember before those that nobody computes any more are dropped."""


class Following:
    """Who computes which beginning, and who waits for it."""

    def __init__(self) -> None:
        # Weak: neither the tokens of a prompt nor what came of them stay here after its answer.
        self._leaders: WeakValueDictionary[tuple[Scope, Ids], Sequence] = WeakValueDictionary()
        self._followers: dict[Sequence, tuple[Sequence, int]] = {}

    def start(self, sequence: Sequence) -> int:
        """Take in a sequence that has just got a slot, with what the cache had for it.

        Returns:
            How many tokens it is going to copy from another one; 0 if it need not wait.
        """
        self._followers.pop(sequence, None)
        prefix = sequence.prefix
        if prefix is None:
            return 0
        if len(self._leaders) > _LEADERS:
            for key, known in list(self._leaders.items()):
                if not _computes(known, len(key[1])):
                    del self._leaders[key]
        for scope, tokens in prefix.parts(sequence.done, len(prefix.ids)):
            key = scope, prefix.ids[:tokens]
            leader = self._leaders.get(key)
            # Nobody waits for one that has less urgent rows to compute.
            if (
                leader is None
                or not _computes(leader, tokens)
                or RANK[leader.job_class] > RANK[sequence.job_class]
            ):
                self._leaders[key] = sequence
            else:
                self._followers[sequence] = leader, tokens
        return self._followers[sequence][1] if sequence in self._followers else 0

    def follows(self, sequence: Sequence) -> bool:
        """Whether it has been waiting for another one, until now at least."""
        return sequence in self._followers

    def waits(self, sequence: Sequence) -> bool:
        """Whether what it waits for is still being computed."""
        return _computes(*self._followers[sequence])

    def stop(self, sequence: Sequence) -> None:
        """It follows nobody any more."""
        self._followers.pop(sequence, None)


def _computes(leader: Sequence, tokens: int) -> bool:
    return leader.slot is not None and leader.done < tokens
