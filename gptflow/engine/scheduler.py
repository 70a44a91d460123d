"""The scheduler: which rows to compute in the next step.

Sequences that decode go first, one row each; the rest of the step's budget is filled with
chunks of prompts, those that have begun before those that wait. Waiting ones go by class,
then by arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import get_args

from gptflow.engine.prefix import PrefixCache
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.request import JobClass

_MIN_PREFILL = 32
"""Prompt rows that a step takes however many sequences decode, so that nobody starves."""


class Scheduler:
    """Owns the slots: who has one, and who waits for one.

    Args:
        step_tokens: rows of one step while something decodes: it bounds the wait for the
            next token.
        prefill_tokens: rows of one step while nothing does.
    """

    def __init__(
        self, slots: KVSlots, prefixes: PrefixCache, *, step_tokens: int, prefill_tokens: int
    ) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._step_tokens = step_tokens
        self._prefill_tokens = prefill_tokens
        self._waiting: dict[JobClass, deque[Sequence]] = {c: deque() for c in get_args(JobClass)}
        self.running: list[Sequence] = []

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def busy(self) -> bool:
        return bool(self.running) or any(self._waiting.values())

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        """Let a sequence wait for a slot, `first` of its class or last."""
        queue = self._waiting[sequence.job_class]
        (queue.appendleft if first else queue.append)(sequence)

    def remove(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """Take a sequence out wherever it is; its slot is free at once.

        Args:
            wipe: overwrite what it leaves in the slot; see `KVSlots.release`.
        """
        if sequence.slot is not None:
            self.running.remove(sequence)
            # Groups of branches used the same place in turn, the longest not always last.
            used = self._slots.length if sequence.branches else len(sequence.tokens)
            self._slots.release(sequence.slot, used=used, wipe=wipe)
            sequence.slot = None
        elif sequence in self._waiting[sequence.job_class]:
            self._waiting[sequence.job_class].remove(sequence)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step: rows that decode first, in the order of their slots."""
        decode: list[Chunk] = []
        prefill: list[Sequence] = []
        for sequence in self.running:
            chunk = Chunk(sequence, sequence.done, sequence.done + 1)
            if sequence.remaining == 1 and chunk.is_decode:
                decode.append(chunk)
            else:
                prefill.append(sequence)
        decode.sort(key=lambda chunk: chunk.sequence.slot or 0)
        chunks = decode
        budget = self._prefill_tokens
        if decode:
            budget = max(self._step_tokens - len(decode), _MIN_PREFILL)
        for sequence in self._candidates(prefill):
            rows = min(sequence.remaining, budget)
            chunks.append(Chunk(sequence, sequence.done, sequence.done + rows))
            budget -= rows
            if budget == 0:
                break
        return chunks

    def _candidates(self, begun: list[Sequence]) -> Iterator[Sequence]:
        yield from begun
        for queue in self._waiting.values():
            while queue and self._slots.free:
                yield self._admit(queue.popleft())

    def _admit(self, sequence: Sequence) -> Sequence:
        sequence.slot = self._slots.take()
        self.running.append(sequence)
        saved = sequence.shared
        if saved is None and sequence.prefix is not None:
            saved = self._prefixes.get(sequence.prefix)
        if saved is not None:
            self._slots.restore(sequence.slot, saved)
            sequence.done = sequence.cached = saved.shape[3]
            sequence.shared = None
        return sequence
