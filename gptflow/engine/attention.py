"""Attention over slots: what the model calls in place of its own attention.

The model runs unmodified on one packed row of tokens from many sequences. It hands its
(already rotated) keys and values to `attend`, which writes them to the slots and lets every
row see its own sequence. `Pack` says which row belongs where; it reaches `attend` as a keyword
argument that the model passes through.

A layer with a sliding window of w tokens lets the row at position p see positions above p - w.
The slot keeps the keys of all the others too: what a window does not reach is masked, or not
read where it lies before everything that the rows can see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom
from transformers import AttentionInterface

from gptflow.engine.native.step import Step
from gptflow.engine.views import Decode, View

NAME = "gptflow"


@dataclasses.dataclass(frozen=True, slots=True)
class Pack:
    """Where the rows of one step belong.

    Attributes:
        keys, values: the cache, per layer `[slots, kv heads, tokens, width]`.
        places: where to write each row's heads, as row numbers of a layer's cache seen as
            `[slots * kv heads * tokens, width]`; `[rows * kv heads]`. The compiled kernels
            need none.
        view: what the rows see through a sliding window of so many tokens; None is no window.
            Made at the step's first layer of that window.
        compiled: the same for the compiled kernels, which then do the work.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    places: torch.Tensor | None
    view: Callable[[int | None], View]
    compiled: Step | None = None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # None: no mask is registered under our name
    *,
    pack: Pack,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention.

    Args:
        query: `[1, heads, rows, width]`.
        key, value: `[1, kv heads, rows, width]`.

    Returns:
        `[1, rows, heads, width]`, and no attention weights.
    """
    if pack.compiled is not None:
        attended = pack.compiled.attend(
            module.layer_idx, query, key, value, scaling=scaling, window=sliding_window
        )
        return attended, None
    assert pack.places is not None
    keys, values = pack.keys[module.layer_idx], pack.values[module.layer_idx]
    for cache, new in ((keys, key), (values, value)):
        width = new.shape[3]
        cache.view(-1, width).index_copy_(0, pack.places, new[0].transpose(0, 1).reshape(-1, width))
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    view = pack.view(sliding_window)
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
    return out[None], None


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
