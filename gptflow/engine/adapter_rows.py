"""Rows of a step by adapter, and three ways of adding `(x @ Aᵀ) @ B` to each.

Many rows of one adapter are one matrix product each (`Span`). Few rows of many adapters are one
batched product over all of them (`Batch`). `MaskedRows` multiplies every row with every adapter
and masks: more arithmetic, but its shapes depend on nothing, as CUDA graphs need it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from gptflow.engine.copies import upload
from gptflow.engine.lora_weights import AdapterRows

_PADDING = 2
"""A batched product may be so many times as large as its rows are."""


class Placed(Protocol):
    """Rows whose adapters are in the places of stacked matrices."""

    def add_(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add `(x @ a[place].T) @ b[place]` to each row of `y` that has a place.

        Args:
            x: `[rows, fan in]`.
            y: `[rows, fan out]`.
            a: `[places, rank, fan in]`.
            b: `[places, rank, fan out]`.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Rows of one adapter: a slice where they lie together, else their numbers."""

    rows: slice | torch.Tensor
    place: int

    def add_(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        low = x[self.rows].to(a.dtype) @ a[self.place].T
        if isinstance(self.rows, slice):
            part = y[self.rows]
            if part.dtype == b.dtype:
                part.addmm_(low, b[self.place])
            else:
                part += (low @ b[self.place]).to(y.dtype)
        else:
            y.index_add_(0, self.rows, (low @ b[self.place]).to(y.dtype))


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Few rows each of several adapters.

    Attributes:
        places: of the adapters: a slice where they lie together, else their numbers.
        take: the rows of each adapter in turn, padded to the most that one has,
            `[adapters, most]`.
        kept: which of these are no padding; None if all.
        rows: the rows that are meant, in the order of `take`.
    """

    places: slice | torch.Tensor
    take: torch.Tensor
    kept: torch.Tensor | None
    rows: torch.Tensor

    def add_(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        taken = x.index_select(0, self.take.view(-1)).to(a.dtype).view(*self.take.shape, -1)
        low = torch.bmm(taken, a[self.places].transpose(1, 2))
        delta = torch.bmm(low, b[self.places]).view(-1, y.shape[1])
        if self.kept is not None:
            delta = delta.index_select(0, self.kept)
        y.index_add_(0, self.rows, delta.to(y.dtype))


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentedRows:
    """Every adapter's rows by themselves, or together where each has but few."""

    parts: tuple[Span | Batch, ...]

    def add_(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        for part in self.parts:
            part.add_(x, y, a, b)


@dataclasses.dataclass(frozen=True, slots=True)
class MaskedRows:
    """All places' matrices as one, and a mask that leaves each row its own adapter's ranks.

    Attributes:
        mask: `[rows, places * rank]` of ones and zeros.
    """

    mask: torch.Tensor

    def add_(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        low = x.to(a.dtype) @ a.flatten(0, 1).T
        # Not a product with the mask: zero times infinity is not a number.
        low = low.masked_fill(~self.mask, 0)
        y += (low @ b.flatten(0, 1)).to(y.dtype)


def mask_of(placed: AdapterRows[int], places: int, rank: int, device: torch.device) -> torch.Tensor:
    """The mask of a step; see `MaskedRows`."""
    owner = torch.full((placed.rows,), -1)
    for start, stop, place in placed.segments:
        owner[start:stop] = place
    mask = owner[:, None] == torch.arange(places)
    return upload(mask.repeat_interleave(rank, dim=1), device)


def plan(placed: AdapterRows[int], device: torch.device) -> SegmentedRows:
    """Lay out the products of a step."""
    by_place: dict[int, list[int]] = {}
    for start, stop, place in placed.segments:
        by_place.setdefault(place, []).extend(range(start, stop))
    few = sorted(by_place, key=lambda place: len(by_place[place]))
    parts: list[Span | Batch] = []
    # Take out who has the most rows, as long as the others would be padded to as many.
    while few and len(few) * len(by_place[few[-1]]) > _PADDING * sum(
        len(by_place[place]) for place in few
    ):
        place = few.pop()
        parts.append(_span(by_place[place], place, device))
    if len(few) == 1:
        parts.append(_span(by_place[few[0]], few[0], device))
    elif few:
        parts.append(_batch({place: by_place[place] for place in sorted(few)}, device))
    return SegmentedRows(tuple(parts))


def _span(rows: list[int], place: int, device: torch.device) -> Span:
    if rows[-1] - rows[0] + 1 == len(rows):
        return Span(slice(rows[0], rows[-1] + 1), place)
    return Span(upload(rows, device), place)


def _batch(by_place: dict[int, list[int]], device: torch.device) -> Batch:
    low, high = min(by_place), max(by_place)
    places: slice | torch.Tensor = slice(low, high + 1)
    # A place in between that is not in use costs a product; copying costs more.
    if high - low + 1 > _PADDING * len(by_place):
        places = upload(list(by_place), device)
        groups = list(by_place.values())
    else:
        groups = [by_place.get(place, []) for place in range(low, high + 1)]
    most = max(map(len, groups))
    take = [[*rows, *[0] * (most - len(rows))] for rows in groups]
    kept = [i * most + j for i, rows in enumerate(groups) for j in range(len(rows))]
    whole = len(kept) == len(groups) * most
    return Batch(
        places=places,
        take=upload(take, device),
        kept=None if whole else upload(kept, device),
        rows=upload([row for rows in groups for row in rows], device),
    )
