"""Places: the matrices of the adapters at work, side by side, for torch's batched products."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from gptflow.engine.adapter_rows import MaskedRows, Placed, mask_of, plan
from gptflow.engine.lora_weights import AdapterRows, LoRAWeights, Projection

_MASKED_RANKS = 256
"""The sum of all places' ranks up to which every row goes through every adapter."""


class StagedRows:
    """The rows of a step, their adapters' matrices stacked.

    Args:
        active: the groups of projections that some of the adapters add to.
    """

    def __init__(self, places: Places, placed: Placed, active: frozenset[str]) -> None:
        self._places = places
        self._placed = placed
        self._active = active

    @property
    def mask(self) -> torch.Tensor | None:
        """Of `MaskedRows`; None if that is not the way they are added."""
        return self._placed.mask if isinstance(self._placed, MaskedRows) else None

    def add_(self, projection: Projection, x: torch.Tensor, y: torch.Tensor) -> None:
        if projection.group in self._active:
            self._placed.add_(x, y, *self._places.matrices(projection))


class LooseRows:
    """The rows of a step, each adapter's matrices where they lie: slower, and takes no memory."""

    mask = None

    def __init__(self, rows: AdapterRows[LoRAWeights], dtype: torch.dtype) -> None:
        self._segments = rows.segments
        self._dtype = dtype

    def add_(self, projection: Projection, x: torch.Tensor, y: torch.Tensor) -> None:
        for start, stop, weights in self._segments:
            if projection.group in weights.groups:
                a, b = (
                    part[projection.index].to(self._dtype)
                    for part in weights.groups[projection.group]
                )
                y[start:stop] += ((x[start:stop].to(self._dtype) @ a.T) @ b).to(y.dtype)


class Places:
    """Stacked matrices, and which adapter lies where; the least recently used ones give way.

    They are as large as the largest rank times the number of places. Where that would take
    more than the limit, they shrink to what a step needs and, if that is too much, a step does
    without them.

    Args:
        most: adapters in one step.
        limit: bytes that they may take.
        dtype: to hold the matrices in.
        masked: send every row through every adapter and mask, as long as they are not too
            many.

    Attributes:
        generation: grows when the matrices move to other memory, which invalidates recorded
            CUDA graphs.
    """

    def __init__(
        self,
        *,
        most: int,
        device: torch.device,
        dtype: torch.dtype,
        masked: bool,
        limit: int | None = None,
    ) -> None:
        self.limit = limit
        self.generation = 0
        self._masked = masked
        self._most = most
        self._device = device
        self._dtype = dtype
        self._count = 0
        self._rank = 0
        self._places: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._stages: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """What the places take."""
        return sum(a.nbytes + b.nbytes for a, b in self._stages.values())

    def stage(self, rows: AdapterRows[LoRAWeights]) -> StagedRows | LooseRows:
        """Bring the adapters of a step to their places."""
        used = {weights.key: weights for _, _, weights in rows.segments}
        if not self._prepare(used):
            return LooseRows(rows, self._dtype)
        placed = AdapterRows(
            tuple((start, stop, self._places[w.key]) for start, stop, w in rows.segments),
            rows=rows.rows,
        )
        if self._masked and self._count * self._rank <= _MASKED_RANKS:
            return self.masked_by(mask_of(placed, self._count, self._rank, self._device))
        active = frozenset(group for weights in used.values() for group in weights.groups)
        return StagedRows(self, plan(placed, self._device), active)

    def masked_by(self, mask: torch.Tensor) -> StagedRows:
        """Rows that belong to the adapters in their places as a mask says; see `MaskedRows`."""
        # Whoever does not add there has zeros. So all steps of a generation are alike.
        return StagedRows(self, MaskedRows(mask), frozenset(self._stages))

    def matrices(self, projection: Projection) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of all places, `[places, rank, fan in]` and `[places, rank, fan out]`."""
        a, b = self._stages[projection.group]
        return a[projection.index], b[projection.index]

    def forget(self, key: str) -> None:
        """Free the place of an adapter that has been unloaded, and with the last one all."""
        if self._places.pop(key, None) is not None and not self._places:
            self._clear()

    def _prepare(self, used: Mapping[str, LoRAWeights]) -> bool:
        """Give every adapter of a step a place; False if that would take too much memory."""
        count, rank = len(used), max(weights.rank for weights in used.values())
        if not self._fits(max(count, self._count), max(rank, self._rank), used):
            if not self._fits(count, rank, used):
                return False
            self._clear()
        for key in used.keys() & self._places.keys():
            self._places.move_to_end(key)
        self._grow(count, rank, used)
        for key, weights in used.items():
            if key not in self._places:
                place = self._take()
                self._places[key] = place
                self._fill(place, weights)
        return True

    def _fits(self, places: int, rank: int, used: Mapping[str, LoRAWeights]) -> bool:
        """Whether so many places of such a rank stay within the limit."""
        if self.limit is None:
            return True
        groups = dict(self._stages)
        for weights in used.values():
            groups |= weights.groups
        numbers = sum(a.shape[0] * (a.shape[-1] + b.shape[-1]) for a, b in groups.values())
        return places * rank * numbers * self._dtype.itemsize <= self.limit

    def _clear(self) -> None:
        """Give all memory back."""
        self._count = self._rank = 0
        self._places.clear()
        self._stages.clear()
        self.generation += 1

    def _take(self) -> int:
        taken = set(self._places.values())
        free = next((place for place in range(self._count) if place not in taken), None)
        if free is not None:
            return free
        # Those in use were moved to the end, and there are enough places for all.
        return self._places.popitem(last=False)[1]

    def _grow(self, places: int, rank: int, used: Mapping[str, LoRAWeights]) -> None:
        """Make room for so many adapters of such a rank."""
        if places <= self._count and rank <= self._rank:
            return
        if places > self._count:
            roomy = max(places, min(2 * self._count, self._most))
            self._count = roomy if self._fits(roomy, max(rank, self._rank), used) else places
        self._rank = max(rank, self._rank)
        self.generation += 1
        for group, old in tuple(self._stages.items()):
            a, b = self._stages[group] = self._stage(old[0], old[1])
            for new, part in zip((a, b), old, strict=True):
                new[:, : part.shape[1], : part.shape[2]] = part

    def _fill(self, place: int, weights: LoRAWeights) -> None:
        """Copy an adapter's matrices to its place, and zeros where it has none."""
        for group, (a, b) in weights.groups.items():
            if group not in self._stages:
                self._stages[group] = self._stage(a, b)
                self.generation += 1
        for group, stages in self._stages.items():
            for stage in stages:
                stage[:, place].zero_()
            if group in weights.groups:
                for stage, part in zip(stages, weights.groups[group], strict=True):
                    stage[:, place, : part.shape[1]] = part

    def _stage(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Empty places for matrices as long and as wide as these."""
        like: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        shape = (a.shape[0], self._count, self._rank)
        return torch.zeros(*shape, a.shape[-1], **like), torch.zeros(*shape, b.shape[-1], **like)
