"""Steps: all rows of a step through a layer's attention in one call, and through the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom

from gptflow.engine.cuda.graphs import DecodeGraphs
from gptflow.engine.cuda.inputs import Inputs, inputs
from gptflow.engine.cuda.operations import Operations, VarlenAttention
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import rows_by_adapter
from gptflow.engine.sequence import Chunk
from gptflow.engine.slots import KVSlots
from gptflow.engine.views import Views

Decoder = Callable[[torch.Tensor, torch.Tensor, "PackedStep"], torch.Tensor]
"""The model: ids and positions, `[1, rows]`, to hidden states `[rows, width]`."""


class Branches:
    """Rows that do not see all before them: branches of a sequence (`gptflow.engine.scoring`).

    Few steps have any. They are computed with the others and then once more with a mask.
    """

    def __init__(self, chunks: Rows[Chunk], views: Views) -> None:
        self._chunks: list[tuple[int, Chunk]] = []
        row = 0
        for chunk in chunks:
            if chunk.branches_off:
                self._chunks.append((row, chunk))
            row += len(chunk)
        self._mask = functools.cache(views.mask)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> None:
        """Put these rows' attention in its place in `out`, `[rows, heads, width]`.

        Args:
            query: `[1, heads, rows, width]`.
            keys, values: of the layer, `[slots, kv heads, length, width]`.
        """
        for row, chunk in self._chunks:
            stop = row + len(chunk)
            attended = F.scaled_dot_product_attention(
                query[:, :, row:stop],
                keys[chunk.slot : chunk.slot + 1, :, : chunk.stop],
                values[chunk.slot : chunk.slot + 1, :, : chunk.stop],
                attn_mask=self._mask(chunk, window),
                scale=scale,
                enable_gqa=query.shape[1] != keys.shape[1],
            )
            out[row:stop] = attended[0].transpose(0, 1)


class PackedStep:
    """`gptflow.engine.attention.Attention` of all rows of a step in one call.

    Args:
        longest: rows of the sequence that has the most.
        windows: is told the sliding windows that layers ask for.
        branches: None if all rows see all before them.
    """

    def __init__(
        self,
        slots: KVSlots,
        given: Inputs,
        attend: VarlenAttention,
        *,
        longest: int,
        windows: set[int],
        branches: Branches | None = None,
    ) -> None:
        self._slots = slots
        self._given = given
        self._attend = attend
        self._longest = longest
        self._branches = branches
        self._windows = windows

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
        """See `gptflow.engine.attention.Attention`."""
        slots, given = self._slots, self._given
        assert slots.pools is not None
        if window is not None:
            self._windows.add(window)
        slots.write(layer, given.places, key[0], value[0])
        out = self._attend(
            query[0].transpose(0, 1),
            *slots.pools[layer],
            given.first_rows,
            given.first_places,
            self._longest,
            # Of the longest sequence that there may be: in a recorded step the number stays.
            slots.length,
            scale=scaling,
            window_size_left=None if window is None else window - 1,
            seqused_k=given.lengths,
        )
        if self._branches is not None:
            keys, values = slots.keys[layer], slots.values[layer]
            self._branches.attend(query, keys, values, out, scale=scaling, window=window)
        return out[None]


class StepRunner:
    """Runs steps of packed rows.

    Args:
        lora: the adapters at work, where the model serves any.
        windows: is told the sliding windows that layers ask for.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: KVSlots,
        operations: Operations,
        lora: LoRABank | None,
        views: Views,
        windows: set[int],
    ) -> None:
        self._decoder = decoder
        self._slots = slots
        self._attend = operations.attend
        self._device = slots.keys[0].device
        self._lora = lora
        self._views = views
        self._windows = windows
        self._graphs: DecodeGraphs | None = None
        if operations.recorder is not None:
            self._graphs = DecodeGraphs(self._decode, slots, operations.recorder, lora)

    def prepare(self) -> None:
        """Record the decode steps, which takes a second or so; else the first one does it."""
        if self._graphs is not None:
            self._graphs.prepare()

    def forward(self, chunks: Rows[Chunk]) -> torch.Tensor:
        """The final hidden states of all chunks' rows, `[rows, width]`."""
        longest = max(map(len, chunks))
        branching = any(chunk.branches_off for chunk in chunks)
        if longest == 1 and not branching and self._graphs is not None:
            hidden = self._graphs.run(chunks)
            if hidden is not None:
                return hidden
        if self._lora is not None:
            self._lora.begin(
                rows_by_adapter([(len(chunk), chunk.sequence.lora) for chunk in chunks])
            )
        given = inputs(chunks, self._slots).to(self._device)
        branches = Branches(chunks, self._views) if branching else None
        return self._run(given, longest, branches)

    def _decode(self, given: Inputs) -> torch.Tensor:
        """One row for each of several sequences."""
        return self._run(given, 1)

    def _run(self, given: Inputs, longest: int, branches: Branches | None = None) -> torch.Tensor:
        step = PackedStep(
            self._slots,
            given,
            self._attend,
            longest=longest,
            windows=self._windows,
            branches=branches,
        )
        return self._decoder(given.ids, given.positions, step)
