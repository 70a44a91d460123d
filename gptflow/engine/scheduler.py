"""The scheduler: which rows to compute in the next step.

Sequences that decode go first, one row each; the rest of the step's budget is filled with
chunks of prompts, by class: those that have begun, then those that wait (`waiting`). A waiting
sequence is let in when there is a slot and its worst case fits in memory (`slots`). Nobody
overtakes one that is next and does not fit yet, or it might never.

Sequences that only read a prompt have slots of their own, and wait in a line of their own.

An interactive or standard sequence that finds no room takes the slot of a less urgent one, which
waits again and later computes anew what it had (pre-emption by recompute, Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention").
"""

from __future__ import annotations

from collections import deque

from gptflow.engine.events import Events
from gptflow.engine.following import Following
from gptflow.engine.pending import told
from gptflow.engine.prefix import PrefixCache
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.engine.waiting import RANK, Waiting
from gptflow.errors import AdapterMemoryFull, GPTFlowError, InputTooLong
from gptflow.request import JobClass

_MIN_PREFILL = 32
"""Prompt rows that a step takes however many sequences decode, so that nobody starves."""

_OLDEST_SHARE = 8
"""One in so many prompt rows is for who has been at it the longest, of whatever class."""

_DRAWN_WEIGHT = 2
"""What a drawn token costs its share, where a token of a prompt costs 1 (as Sheng et al.)."""

_PREEMPTIONS = 2
"""Times that one sequence may lose its slot."""


class Scheduler:
    """Owns the slots: who has one, and who waits for one.

    Args:
        step_tokens: rows of one step while something decodes: it bounds the wait for the
            next token.
        prefill_tokens: rows of one step while nothing does.
        events: is told who is let in and who has to go.
    """

    def __init__(
        self,
        slots: KVSlots,
        prefixes: PrefixCache,
        *,
        step_tokens: int,
        prefill_tokens: int,
        events: Events,
    ) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._step_tokens = step_tokens
        self._prefill_tokens = prefill_tokens
        self._events = events
        self._waiting = Waiting()
        self._following = Following()
        self._refused: list[tuple[Sequence, GPTFlowError]] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_by_class(self) -> dict[JobClass, int]:
        return self._waiting.by_class()

    @property
    def busy(self) -> bool:
        return bool(self.running) or self.waiting > 0

    def add(self, sequence: Sequence, *, begun: bool = False) -> None:
        """Let a sequence wait for a slot.

        Args:
            begun: its request has begun already; it goes before the others of its share.

        Raises:
            InputTooLong: there will never be room for it.
        """
        if sequence.most_tokens > self._slots.most:
            raise InputTooLong(
                f"The request may take {sequence.most_tokens} tokens; the key-value cache "
                f"holds {self._slots.most} at most.",
                hint="Shorten the input or lower max_tokens.",
            )
        self._waiting.push(sequence, begun=begun)

    def reclassify(self, sequence: Sequence, job_class: JobClass) -> None:
        """Change the class of a sequence wherever it is."""
        waits = sequence.ticket is not None
        if waits:
            self._waiting.remove(sequence)
        sequence.job_class = job_class
        if waits:
            self._waiting.push(sequence, begun=True)

    def remove(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """Take a sequence out wherever it is; its slot is free at once.

        Args:
            wipe: overwrite what it leaves in the slot; see `KVSlots.release`.
        """
        if sequence.slot is not None:
            self.running.remove(sequence)
            self._release(sequence, wipe=wipe)
        elif sequence.ticket is not None:
            self._waiting.remove(sequence)
        sequence.shared = None

    def take_refused(self) -> list[tuple[Sequence, GPTFlowError]]:
        """Whose adapter could not be read in the last step, and why."""
        refused, self._refused = self._refused, []
        return refused

    def plan(self) -> list[Chunk]:
        """The chunks of the next step: rows that decode first, in the order of their slots."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            if sequence.decodes and sequence.remaining == 1:
                decoding.append(sequence)
            elif self._ready(sequence):
                prefilling.append(sequence)
        budget = self._prefill_tokens
        if decoding:
            budget = max(self._step_tokens - len(decoding), _MIN_PREFILL)
        chunks = self._prefill(prefilling, budget)
        decode = [self._chunk(sequence, 1) for sequence in decoding if sequence.slot is not None]
        decode.sort(key=lambda chunk: chunk.sequence.slot or 0)
        return decode + chunks

    def _prefill(self, begun: list[Sequence], budget: int) -> list[Chunk]:
        """Chunks of prompts: the most urgent first, but some of the oldest in every step."""
        chunks: list[Chunk] = []
        evicted: list[Sequence] = []
        oldest = begun[0] if begun else None
        kept = min(oldest.remaining, max(budget // _OLDEST_SHARE, 1)) if oldest else 0
        budget -= kept
        queue = deque(sorted(begun, key=lambda sequence: RANK[sequence.job_class]))
        while budget > 0:
            sequence = self._admit_next(queue, chunks, evicted)
            if sequence is None:
                while queue and queue[0].slot is None:  # evicted in this very step
                    queue.popleft()
                if not queue:
                    break
                sequence = queue.popleft()
            if not self._ready(sequence):
                continue
            if sequence is oldest:
                budget += kept
                kept = 0
            chunks.append(self._chunk(sequence, min(sequence.remaining, budget)))
            budget -= len(chunks[-1])
        if oldest is not None and kept and oldest.slot is not None:
            chunks.append(self._chunk(oldest, kept))
        for sequence in evicted:
            self._waiting.push(sequence, begun=True)
        return chunks

    def _admit_next(
        self, begun: deque[Sequence], chunks: list[Chunk], evicted: list[Sequence]
    ) -> Sequence | None:
        """Let in who waits and is more urgent than who has begun, if there is room."""
        for turn in self._waiting.turns():
            if begun and RANK[begun[0].job_class] <= turn.rank:
                continue
            sequence = turn.sequence
            victims: list[Sequence] = []
            if not self._slots.fits(sequence.most_tokens, decodes=sequence.decodes):
                victims = self._victims(sequence, chunks)
                if not victims:
                    continue
            if not self._adapt(sequence):
                continue
            for victim in victims:
                self._preempt(victim)
            evicted += victims
            self._waiting.admit(sequence)
            self._start(sequence)
            return sequence
        return None

    def _adapt(self, sequence: Sequence) -> bool:
        """Have its adapter in memory; False if there is no room for that yet, or never will."""
        if sequence.adapter is None:
            return True
        try:
            sequence.lora = sequence.adapter.begin()
        except AdapterMemoryFull:  # those that run make room when they end
            return False
        except Exception as error:  # noqa: BLE001  the request's future carries it
            self._waiting.remove(sequence)
            self._refused.append((sequence, told(error, "reading the adapter of", _ids(sequence))))
            return False
        return True

    def _victims(self, urgent: Sequence, chunks: list[Chunk]) -> list[Sequence]:
        """Who has to go for a more urgent sequence: nobody if that would not be enough.

        The least urgent go first, of these the least advanced, which lose the least.
        """
        planned = {id(chunk.sequence) for chunk in chunks}
        able = [
            sequence
            for sequence in self.running
            if RANK[sequence.job_class] > RANK[urgent.job_class]
            and sequence.preempted < _PREEMPTIONS
            and id(sequence) not in planned
        ]
        # Where it is a slot that lacks, somebody has to go who has one of that kind.
        lacks_slot = not self._slots.has_slot(decodes=urgent.decodes)
        able.sort(
            key=lambda sequence: (
                lacks_slot and sequence.decodes != urgent.decodes,
                -RANK[sequence.job_class],
                sequence.done,
            )
        )
        given: list[int] = []
        for sequence in able:
            assert sequence.slot is not None
            given.append(sequence.slot)
            if self._slots.fits(urgent.most_tokens, decodes=urgent.decodes, without=given):
                return able[: len(given)]
        return []

    def _preempt(self, sequence: Sequence) -> None:
        self._events.record("preempted", sequence)
        self.running.remove(sequence)
        # Whatever the model made of it so far, nobody has looked yet whether it is a number.
        self._release(sequence, wipe=True)
        sequence.preempted += 1
        sequence.restart()
        self.preemptions += 1

    def _start(self, sequence: Sequence) -> None:
        sequence.slot = self._slots.take(sequence.most_tokens, decodes=sequence.decodes)
        self.running.append(sequence)
        self._restore(sequence)
        coming = self._following.start(sequence)
        if not sequence.preempted:  # what is computed twice is accounted for once
            sequence.cached = sequence.done
            sequence.charged = sequence.spared = max(sequence.done, coming)
            self._charge(sequence, len(sequence.tokens), 1)
        self._events.record("admitted", sequence)

    def _ready(self, sequence: Sequence) -> bool:
        """Whether it has rows to compute, rather than to copy from somebody soon."""
        if self._following.follows(sequence):
            if self._following.waits(sequence):
                return False
            self._following.stop(sequence)
            self._restore(sequence)
            if not sequence.preempted:
                sequence.cached = sequence.done
        return True

    def _restore(self, sequence: Sequence) -> None:
        """Copy into its slot what is known of its beginning."""
        assert sequence.slot is not None
        saved = sequence.shared
        if saved is None and sequence.prefix is not None:
            saved = self._prefixes.get(sequence.prefix)
        if saved is not None:
            self._slots.restore(sequence.slot, saved)
            sequence.done = saved.shape[3]
            sequence.shared = None

    def _chunk(self, sequence: Sequence, rows: int) -> Chunk:
        if sequence.done < sequence.spared:  # nobody left the rows that it was to copy
            self._waiting.charge(sequence, sequence.spared - sequence.done)
            sequence.spared = sequence.done
        chunk = Chunk(sequence, sequence.done, sequence.done + rows)
        self._charge(sequence, chunk.stop, _DRAWN_WEIGHT)  # the prompt has been charged
        return chunk

    def _charge(self, sequence: Sequence, stop: int, weight: int) -> None:
        """Charge its share for rows up to `stop`, once only even if they are computed twice."""
        if stop > sequence.charged:
            self._waiting.charge(sequence, weight * (stop - sequence.charged))
            sequence.charged = stop

    def _release(self, sequence: Sequence, *, wipe: bool = False) -> None:
        assert sequence.slot is not None
        self._following.leave(sequence)
        # Groups of branches used the same place in turn, the longest not always last.
        used = sequence.most_tokens if sequence.branches else len(sequence.tokens)
        self._slots.release(sequence.slot, used=used, wipe=wipe)
        sequence.slot = None
        if sequence.adapter is not None:
            sequence.adapter.pause()
            sequence.lora = None


def _ids(sequence: Sequence) -> str:
    return ", ".join(pending.request.id for pending in sequence.owners)
