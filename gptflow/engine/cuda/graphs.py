"""Graphs: decode steps recorded once for a few numbers of sequences, and run again and again.

A step of a small model is several hundred kernels that the GPU finishes faster than Python can
start them; a recorded one starts them all at once. What it reads and writes stays in place, so a
step fills in the inputs of the smallest recorded size that holds it. What is left over computes
one token at a place that belongs to no slot.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch

from gptflow.engine.cuda.inputs import Inputs, inputs
from gptflow.engine.cuda.operations import Record
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import rows_by_adapter
from gptflow.engine.sequence import Chunk
from gptflow.engine.slots import KVSlots

log = logging.getLogger(__name__)

_SIZES = (1, 2, 4, *range(8, 257, 8))
"""Sequences of one step."""


class _Recorded(NamedTuple):
    given: Inputs
    mask: torch.Tensor | None
    """Whose adapter adds to which row, as `MaskedRows.mask`; None if there are no adapters."""
    hidden: list[torch.Tensor]
    """One, `[size, width]`: what the last run has computed."""
    run: Callable[[], None]


class DecodeGraphs:
    """Decode steps of fixed sizes, with and without adapters.

    Those without are recorded at once; those with when they are first wanted, and anew when the
    adapters' matrices have moved in memory.

    Args:
        decode: computes a step: inputs to hidden states `[rows, width]`.
        recorder: starts a set of recordings, see `Record`.
        lora: the adapters at work, where the model serves any.
    """

    def __init__(
        self,
        decode: Callable[[Inputs], torch.Tensor],
        slots: KVSlots,
        recorder: Callable[[], Record],
        lora: LoRABank | None,
    ) -> None:
        self._decode = decode
        self._slots = slots
        self._recorder = recorder
        self._lora = lora
        self._device = slots.keys[0].device
        self._sizes = sizes(slots.slots)
        self._failed = False
        self._plain: dict[int, _Recorded] = {}
        self._adapted: dict[int, _Recorded] = {}
        self._record_adapted: Record | None = None
        self._generation = -1

    def prepare(self) -> None:
        """Record all sizes without adapters, unless they are."""
        if self._plain or self._failed:
            return
        began = time.perf_counter()
        if self._lora is not None:
            self._lora.begin(None)
        record = self._recorder()
        # The largest first: the others find room in the memory that it took.
        for size in reversed(self._sizes):
            made = self._make(size, record, None)
            if made is None:
                return
            self._plain[size] = made
        seconds = time.perf_counter() - began
        log.info("decode steps of %d sizes recorded in %.1f s", len(self._sizes), seconds)

    def run(self, chunks: Rows[Chunk]) -> torch.Tensor | None:
        """The hidden states `[rows, width]` of one row of each sequence.

        None if there is no recording for them.
        """
        self.prepare()
        size = fitting(self._sizes, len(chunks))
        if self._failed or size is None:
            return None
        recorded = self._plain[size]
        rows = rows_by_adapter([(1, chunk.sequence.lora) for chunk in chunks])
        if self._lora is not None and rows is not None:
            self._lora.begin(dataclasses.replace(rows, rows=size))
            mask = self._lora.mask
            if mask is None:  # too many adapters to go through all
                return None
            adapted = self._for_adapters(size, mask, self._lora)
            if adapted is None:
                return None
            assert adapted.mask is not None
            adapted.mask.copy_(mask)
            recorded = adapted
        recorded.given.fill(inputs(chunks, self._slots, pad_to=size))
        recorded.run()
        # The next run overwrites it.
        return recorded.hidden[0][: len(chunks)].clone()

    def _for_adapters(self, size: int, like: torch.Tensor, lora: LoRABank) -> _Recorded | None:
        """A recording that reads the adapters where they are now."""
        if self._generation != lora.generation or self._record_adapted is None:
            self._adapted.clear()
            self._generation = lora.generation
            self._record_adapted = self._recorder()
        if size not in self._adapted:
            lora.mask = mask = torch.zeros_like(like)
            made = self._make(size, self._record_adapted, mask)
            if made is None:
                return None
            self._adapted[size] = made
        return self._adapted[size]

    def _make(self, size: int, record: Record, mask: torch.Tensor | None) -> _Recorded | None:
        given = inputs((), self._slots, pad_to=size).to(self._device)
        hidden: list[torch.Tensor] = []

        def work() -> None:
            hidden[:] = [self._decode(given)]

        try:
            return _Recorded(given, mask, hidden, record(work))
        except RuntimeError:
            log.warning("decode steps run unrecorded: recording one failed", exc_info=True)
            self._failed = True
            self._plain.clear()
            self._adapted.clear()
            return None


def sizes(slots: int) -> list[int]:
    """The numbers of sequences to record for an engine of so many slots, ascending."""
    return [size for size in _SIZES if size < slots] + [min(slots, _SIZES[-1])]


def fitting(sizes: Rows[int], sequences: int) -> int | None:
    """The smallest size that holds so many sequences."""
    return next((size for size in sizes if size >= sequences), None)
