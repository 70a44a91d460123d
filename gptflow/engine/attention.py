"""Attention over slots: what the model calls in place of its own attention.

The model runs unmodified on one packed row of tokens from many sequences. It hands its
(already rotated) keys and values to `attend`, which writes them to the slots and lets every
row see its own sequence. An `Attention` says which row belongs where; it reaches `attend` as a
keyword argument that the model passes through.

A layer with a sliding window of w tokens lets the row at position p see positions above p - w.
The slot keeps the keys of all the others too: what a window does not reach is masked, or not
read where it lies before everything that the rows can see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom
from transformers import AttentionInterface

from gptflow.engine.slots import KVSlots
from gptflow.engine.views import Decode, View

NAME = "gptflow"


class Attention(Protocol):
    """Where the rows of one step belong, and how they attend."""

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
        """Keep the keys and values of a layer's rows, and let each see its own sequence.

        Args:
            query: `[1, heads, rows, width]`.
            key, value: `[1, kv heads, rows, width]`.
            scaling: of the scores; None is one over the root of the width.
            window: how many tokens a row sees, itself included; None is all before it.

        Returns:
            `[1, rows, heads, width]`.
        """
        ...


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # None: no mask is registered under our name
    *,
    pack: Attention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention, in the form that transformers wants; there are no weights."""
    attended = pack.attend(
        module.layer_idx, query, key, value, scaling=scaling, window=sliding_window
    )
    return attended, None


@dataclasses.dataclass(frozen=True, slots=True)
class Pack:
    """`Attention` by torch's own operators.

    Attributes:
        places: where in the slots to write the rows, for `KVSlots.write`.
        view: what the rows see through a sliding window of so many tokens; None is no window.
            Made at the step's first layer of that window.
    """

    slots: KVSlots
    places: torch.Tensor
    view: Callable[[int | None], View]

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
        """See `Attention`."""
        self.slots.write(layer, self.places, key[0], value[0])
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        view = self.view(window)
        if view.decode is not None:
            rows = view.decode.rows
            out[:rows] = _decode(view.decode, query[0, :, :rows], keys, values, scaling)
        for span in view.spans:
            attended = F.scaled_dot_product_attention(
                query[:, :, span.start : span.stop],
                keys[span.slot : span.slot + 1, :, span.first : span.length],
                values[span.slot : span.slot + 1, :, span.first : span.length],
                attn_mask=span.mask,
                is_causal=span.mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != keys.shape[1],
            )
            out[span.start : span.stop] = attended[0].transpose(0, 1)
        return out[None]


def _decode(
    decode: Decode,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of single new tokens, `[heads, rows, width]` to `[rows, heads, width]`."""
    heads, rows, width = query.shape
    kv_heads = keys.shape[1]
    # Query heads that share a key-value head become rows of one small matrix product.
    grouped = query.transpose(0, 1).reshape(rows, kv_heads, heads // kv_heads, width)
    if decode.place is not None:
        block = grouped.new_zeros(decode.size, *grouped.shape[1:])
        block[decode.place] = grouped
        grouped = block
    attended = F.scaled_dot_product_attention(
        grouped,
        keys[decode.slots, :, decode.first : decode.length],
        values[decode.slots, :, decode.first : decode.length],
        attn_mask=decode.mask,
        scale=scaling,
    )
    if decode.place is not None:
        attended = attended[decode.place]
    return attended.reshape(rows, heads, -1)


AttentionInterface.register(NAME, attend)
