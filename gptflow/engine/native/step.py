"""One step as the kernels see it: which rows belong to which slot, and where the slots are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gptflow.engine.native.library import (
    HEAD_WIDTHS,
    MAX_GROUP,
    Cache,
    Item,
    Library,
    Shape,
    address,
)
from gptflow.engine.slots import KVSlots

Mask = Callable[[int | None], torch.Tensor | None]
"""What rows that do not simply see all before them see through a window: `[rows, length]`."""


class Part(NamedTuple):
    """Rows `row:row + rows` of a step: as many of a slot's tokens, from number `start` on."""

    row: int
    rows: int
    slot: int
    start: int
    mask: Mask | None = None


class Step:
    """What the compiled layers of one step share.

    Attributes:
        caches: one per layer.
        adapted: whether adapters add to any of the rows.
        windows: the sliding windows that layers have asked for.
    """

    def __init__(
        self, library: Library, caches: Sequence[Cache], parts: Sequence[Part], *, adapted: bool
    ) -> None:
        self.caches = caches
        self.adapted = adapted
        self.windows: set[int] = set()
        self._library = library
        self._parts = parts
        self._items: dict[int | None, tuple[Any, list[torch.Tensor]]] = {}

    def items(self, window: int | None) -> tuple[Any, int]:
        """The parts for the kernels, as seen through a sliding window, and their number."""
        if window is not None:
            self.windows.add(window)
        # The rule that the kernels know covers any window; a mask is made for just one.
        key = window if any(part.mask for part in self._parts) else None
        if key not in self._items:
            self._items[key] = self._make(key)
        return self._items[key][0], len(self._parts)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention for a layer that is not compiled as a whole.

        Args:
            query: `[1, heads, rows, width]`.
            key, value: `[1, kv heads, rows, width]`.

        Returns:
            `[1, rows, heads, width]`.
        """
        queries, keys, values = (
            part[0].transpose(0, 1).contiguous() for part in (query, key, value)
        )
        out = torch.empty_like(queries)
        scale = 1 / math.sqrt(queries.shape[2]) if scaling is None else scaling
        shape = Shape(heads=queries.shape[1], window=window or 0, scale=scale)
        items, count = self.items(window)
        self._library.attend(
            address(self.caches[layer]),
            address(shape),
            items,
            count,
            queries.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
        )
        return out[None]

    def _make(self, window: int | None) -> tuple[Any, list[torch.Tensor]]:
        masks: list[torch.Tensor] = []
        items = (Item * len(self._parts))()
        for item, part in zip(items, self._parts, strict=True):
            item.row, item.rows, item.slot, item.start = part[:4]
            mask = part.mask and part.mask(window)
            if mask is not None:
                masks.append(mask)
                item.mask, item.mask_stride = mask.data_ptr(), mask.stride(0)
        return items, masks


def caches_of(slots: KVSlots) -> list[Cache]:
    """The slots' memory, layer by layer."""
    return [
        Cache(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            length=keys.shape[2],
            kv_heads=keys.shape[1],
            width=keys.shape[3],
            half=int(keys.dtype == torch.float16),
        )
        for keys, values in zip(slots.keys, slots.values, strict=True)
    ]


def serves(heads: int, kv_heads: int, width: int) -> bool:
    """Whether heads of this shape are compiled."""
    return width in HEAD_WIDTHS and heads % kv_heads == 0 and heads // kv_heads <= MAX_GROUP
