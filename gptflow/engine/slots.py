"""Slots: the key-value cache, one fixed stretch of it per running sequence."""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
import sys
from typing import Any

import torch

_KEPT = 256
"""Tokens whose memory a free slot may keep: it saves short sequences from faulting it in anew."""


class KVSlots:
    """Keys and values of all layers, and which slots are free.

    Args:
        layers, heads, width: the model's depth, its key-value heads, and numbers per head.
        slots: sequences that fit at the same time.
        length: tokens that fit in one slot.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        width: int,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, layers, slots, heads, length, width)
        self.slots, self.length = slots, length
        self._cache, self._pages = _zeros(shape, dtype, device)
        self.keys = tuple(self._cache[0])
        """Per layer, `[slots, heads, length, width]`."""
        self.values = tuple(self._cache[1])
        """Per layer, the same shape."""
        self._free = list(range(slots))

    @classmethod
    def for_model(
        cls,
        config: Any,
        *,
        slots: int,
        length: int,
        like: torch.Tensor,
        dtype: torch.dtype | None = None,
    ) -> KVSlots:
        """Slots for a transformers model, on the device and by default of the type of a weight."""
        layers, heads, width = model_shape(config)
        return cls(
            layers=layers,
            heads=heads,
            width=width,
            slots=slots,
            length=length,
            dtype=dtype or like.dtype,
            device=like.device,
        )

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def nbytes(self) -> int:
        return int(self._cache.nbytes)

    def take(self) -> int:
        """A free slot, the lowest: decoding reads the slots in use as one dense block."""
        return heapq.heappop(self._free)

    def release(self, slot: int, *, used: int, wipe: bool = False) -> None:
        """Give a slot back, and the memory of a long sequence to the system.

        Args:
            used: tokens that it may have held.
            wipe: overwrite them. What a sequence leaves behind is masked out for the next
                one, but a mask does not hide a NaN.
        """
        if wipe:
            self._cache[:, :, slot, :, :used].zero_()
        if used > _KEPT:
            self._return_pages(slot)
        heapq.heappush(self._free, slot)

    def _return_pages(self, slot: int) -> None:
        """Drop the pages that lie wholly in a slot; they read as zero from then on."""
        if self._pages is None:
            return
        size = self._cache[0, 0, slot].nbytes
        for part in range(self._cache.shape[0] * self._cache.shape[1]):
            start = (part * self.slots + slot) * size
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > first:
                self._pages.madvise(mmap.MADV_DONTNEED, first, end - first)

    def places(self, slots: list[int], index: list[int]) -> torch.Tensor:
        """Row numbers in a layer's cache seen as `[slots * heads * length, width]`.

        Args:
            slots, index: of each token, its slot and its place there.

        Returns:
            Each token's rows, head by head: `[tokens * heads]`.
        """
        heads = self.keys[0].shape[1]
        first = torch.tensor(slots) * (heads * self.length) + torch.tensor(index)
        places: torch.Tensor = first[:, None] + torch.arange(heads) * self.length
        return places.flatten().to(device=self._cache.device)

    def save(self, slot: int, tokens: int) -> torch.Tensor:
        """A copy of a slot's first tokens: `[2, layers, heads, tokens, width]`."""
        return self._cache[:, :, slot, :, :tokens].clone()

    def restore(self, slot: int, saved: torch.Tensor) -> None:
        """Put a copy from `save` at the start of a slot."""
        self._cache[:, :, slot, :, : saved.shape[3]] = saved


def model_shape(config: Any) -> tuple[int, int, int]:
    """A transformers model's layers, its key-value heads, and the numbers of one head."""
    heads = config.num_attention_heads
    return (
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, mmap.mmap | None]:
    """The cache, and its pages where the system takes single ones back."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device), None
    # Fresh pages from the system are zero and take no memory until a sequence reaches them;
    # torch.zeros would write every one.
    size = math.prod(shape) * dtype.itemsize
    if sys.platform != "linux":  # no other system promises that what is dropped reads as zero
        return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape), None
    # Shared pages would stay with the system when they are dropped here.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Huge pages would be filled whole at a slot's first token.
    with contextlib.suppress(OSError):  # a kernel without huge pages does not know the word
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape), pages
