"""Sharing: what a sequence has computed that others can start from."""

from __future__ import annotations

import weakref

from gptflow.engine.prefix import Prefix, PrefixCache
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.sequence import Chunk, Decoding
from gptflow.engine.slots import KVSlots


class Sharing:
    """Keeps beginnings of prompts, and the prompt of a request that draws several continuations.

    Args:
        limit: bytes of prompts to keep for continuations that wait for a slot. Beyond it
            they compute the prompt again.
    """

    def __init__(
        self, slots: KVSlots, prefixes: PrefixCache, scheduler: Scheduler, limit: int
    ) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._scheduler = scheduler
        self._limit = limit
        self.nbytes = 0

    def keep(self, chunks: list[Chunk]) -> None:
        """Copy what is worth it from the slots after a step."""
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.slot is not None
            if sequence.prefix is not None:
                self._keep_beginnings(sequence.prefix, chunk)
            if isinstance(sequence, Decoding) and sequence.siblings and sequence.remaining == 0:
                self._release_siblings(sequence, sequence.slot)

    def _keep_beginnings(self, prefix: Prefix, chunk: Chunk) -> None:
        for scope, tokens in prefix.parts(chunk.start, chunk.stop):
            ids = prefix.ids[:tokens]
            if self._prefixes.wants(scope, ids):
                self._prefixes.put(scope, ids, self._slots.save(chunk.slot, tokens))

    def _release_siblings(self, sequence: Decoding, slot: int) -> None:
        """Let the other continuations follow the first one, which has computed the prompt."""
        # Less one token: each of them needs the last row's logits for itself.
        tokens = sequence.trunk - 1
        size = tokens * self._slots.bytes_per_token
        saved = None
        if 0 < size <= self._limit - self.nbytes:
            saved = self._slots.save(slot, tokens)
            self.nbytes += size
            weakref.finalize(saved, self._dropped, size).atexit = False
        for sibling in sequence.siblings:
            sibling.shared = saved
            self._scheduler.add(sibling, begun=True)
        sequence.siblings = []

    def _dropped(self, size: int) -> None:
        self.nbytes -= size
