"""Low-rank additions by the kernels, for rows of many adapters in one call."""

from __future__ import annotations

from typing import Any

import torch

from gptflow.engine.lora_weights import AdapterRows, LoRAWeights, Projection
from gptflow.engine.native.library import Library, Matrices

MAX_RANK = 256
"""Of the matrices that the kernels take; as in adapt.h."""

_TOGETHER = 4
"""Rows of one adapter that share each read of its matrices; as in adapt.h."""


class CompiledRows:
    """The rows of a step, their adapters' matrices read where they lie: nothing is copied."""

    def __init__(self, library: Library, rows: AdapterRows[LoRAWeights]) -> None:
        of_adapter: dict[str, list[int]] = {}
        self._adapters: dict[str, LoRAWeights] = {}
        for start, stop, weights in rows.segments:
            self._adapters[weights.key] = weights
            of_adapter.setdefault(weights.key, []).extend(range(start, stop))
        order: list[int] = []
        blocks: list[tuple[int, int, int]] = []
        for number, key in enumerate(self._adapters):
            own = of_adapter[key]
            for at in range(0, len(own), _TOGETHER):
                part = own[at : at + _TOGETHER]
                blocks.append((number, len(order), len(part)))
                order += part
        self._library = library
        self._count = len(blocks)
        self._order = torch.tensor(order, dtype=torch.int32)
        self._blocks = torch.tensor(blocks, dtype=torch.int32)
        self._groups: dict[str, tuple[Any, bool] | None] = {}

    def add_(self, projection: Projection, x: torch.Tensor, y: torch.Tensor) -> None:
        group = self._group(projection.group)
        if group is None:
            return
        assert x.stride(1) == 1
        assert y.stride(1) == 1
        matrices, half = group
        self._library.adapt(
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            y.stride(0),
            self._blocks.data_ptr(),
            self._count,
            self._order.data_ptr(),
            matrices,
            projection.index,
            projection.fan_in,
            projection.fan_out,
            half,
        )

    def _group(self, name: str) -> tuple[Any, bool] | None:
        """All adapters' matrices for one kind of projection, and whether in half precision."""
        if name not in self._groups:
            self._groups[name] = self._gather(name)
        return self._groups[name]

    def _gather(self, name: str) -> tuple[Any, bool] | None:
        array = (Matrices * len(self._adapters))()
        half = None
        for matrices, weights in zip(array, self._adapters.values(), strict=True):
            if name in weights.groups:
                a, b = weights.groups[name]
                half = a.dtype == torch.float16
                matrices.a, matrices.b, matrices.rank = a.data_ptr(), b.data_ptr(), a.shape[1]
        return None if half is None else (array, half)
