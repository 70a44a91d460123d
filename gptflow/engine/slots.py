"""Slots: the key-value cache, one fixed stretch of it per running sequence."""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
from typing import Any

import torch


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
        self._cache = _zeros(shape, dtype, device)
        self.keys = tuple(self._cache[0])
        """Per layer, `[slots, heads, length, width]`."""
        self.values = tuple(self._cache[1])
        """Per layer, the same shape."""
        self._free = list(range(slots))

    @classmethod
    def for_model(cls, config: Any, *, slots: int, length: int, like: torch.Tensor) -> KVSlots:
        """Slots for a transformers model, of the type and on the device of a weight of it."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            slots=slots,
            length=length,
            dtype=like.dtype,
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

    def release(self, slot: int, *, wipe: int = 0) -> None:
        """Give a slot back.

        Args:
            wipe: how many tokens to overwrite. What a sequence leaves behind is masked out
                for the next one, but a mask does not hide a NaN.
        """
        if wipe:
            self._cache[:, :, slot, :, :wipe].zero_()
        heapq.heappush(self._free, slot)

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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Fresh pages from the system are zero and take no memory until a sequence reaches them;
    # torch.zeros would write every one. Huge pages would be filled whole at a slot's first token.
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages does not know the word
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    cache: torch.Tensor = torch.frombuffer(pages, dtype=dtype).view(shape)
    return cache
