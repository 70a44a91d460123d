"""Inputs: all numbers of a step in one block of memory, to be copied to the device at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows

import torch

from gptflow.engine.copies import pinned, upload
from gptflow.engine.sequence import Chunk
from gptflow.engine.slots import KVSlots


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """What a step of the model is told, as parts of one block.

    Attributes:
        block: `[size]`, of 64 bits.
        ids, positions: `[1, rows]`, of 64 bits.
        places: where in the pool each row's keys and values go; `[rows]`, of 64 bits.
        first_rows: where each sequence's rows begin, and their number; `[sequences + 1]`,
            of 32 bits like the rest.
        first_places: where in the pool each sequence begins; `[sequences + 1]`.
        lengths: tokens of each sequence, the rows' own included; `[sequences]`.
    """

    block: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    first_rows: torch.Tensor
    first_places: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def empty(cls, rows: int, sequences: int, device: torch.device | str = "cpu") -> Inputs:
        """Room for so many rows."""
        size = 3 * rows + -(-(3 * sequences + 2) // 2)
        return cls._of(torch.zeros(size, dtype=torch.long, device=device), rows, sequences)

    def to(self, device: torch.device) -> Inputs:
        """A copy on the device."""
        return self._of(upload(self.block, device), len(self.places), len(self.lengths))

    def fill(self, other: Inputs) -> None:
        """Take over the numbers of inputs of the same size that are not on the device yet."""
        self.block.copy_(pinned(other.block, self.block.device), non_blocking=True)

    @classmethod
    def _of(cls, block: torch.Tensor, rows: int, sequences: int) -> Inputs:
        halves = block[3 * rows :].view(torch.int32)
        return cls(
            block=block,
            ids=block[None, :rows],
            positions=block[None, rows : 2 * rows],
            places=block[2 * rows : 3 * rows],
            first_rows=halves[: sequences + 1],
            first_places=halves[sequences + 1 : 2 * sequences + 2],
            lengths=halves[2 * sequences + 2 : 3 * sequences + 2],
        )


def inputs(chunks: Rows[Chunk], slots: KVSlots, *, pad_to: int = 0) -> Inputs:
    """The inputs of a step.

    Args:
        pad_to: add sequences of one row up to so many. They read and write a place in the
            pool that belongs to no slot.
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    first_rows: list[int] = []
    first_places: list[int] = []
    lengths: list[int] = []
    for chunk in chunks:
        first = chunk.slot * slots.length
        first_rows.append(len(ids))
        first_places.append(first)
        lengths.append(chunk.stop)
        ids += chunk.sequence.tokens[chunk.start : chunk.stop]
        positions += chunk.sequence.positions(chunk.start, chunk.stop)
        places += range(first + chunk.start, first + chunk.stop)
    for _ in range(pad_to - len(chunks)):
        first_rows.append(len(ids))
        first_places.append(slots.spare)
        lengths.append(1)
        ids.append(0)
        positions.append(0)
        places.append(slots.spare)
    first_rows.append(len(ids))
    first_places.append(0)
    made = Inputs.empty(len(ids), len(lengths))
    made.block[: 3 * len(ids)] = torch.tensor(ids + positions + places)
    halves = torch.tensor(first_rows + first_places + lengths, dtype=torch.int32)
    made.block[3 * len(ids) :].view(torch.int32)[: len(halves)] = halves
    return made
