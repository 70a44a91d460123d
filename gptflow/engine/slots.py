"""Slots: the key-value cache, one fixed stretch of it per running sequence.

On Linux the cache is address space that takes memory only where a sequence has written. So
more of it may be laid out than the machine could fill, and `budget` bounds what is: a sequence
gets a slot only if the most that it can write still fits, besides the most that the others
can. Memory is thus there before a sequence begins, and never runs out halfway.

Sequences that only read a prompt have slots beside those of the ones that decode. They stay for
a few steps, and need not wait for one that decodes to end.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
import sys
from collections.abc import Sequence as Rows
from typing import Any

import torch

from gptflow.engine.copies import upload

_KEPT = 256
"""Tokens whose memory a free slot may keep: it saves short sequences from faulting it in anew."""

_KEEPING = 8
"""Slots for prompts only that may. Few of them are in use for most of the time."""

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux's, which Python names since 3.13: address space need not be backed by what there is."""


class KVSlots:
    """Keys and values of all layers, and which slots are free.

    Args:
        layers, heads, width: the model's depth, its key-value heads, and numbers per head.
        slots: sequences that fit at the same time.
        beside: slots for sequences that do not decode, besides these; their numbers follow. If
            there are none, all sequences share the slots.
        length: tokens that fit in one slot.
        budget: tokens that may be in memory at the same time; all of them by default.
        token_major: lay the heads of a token side by side, as attention over packed rows
            wants them, and not the tokens of a head; by default on a GPU. Shapes are the same
            either way.

    Attributes:
        keys, values: per layer, `[slots + beside, heads, length, width]`.
        pools: if token-major, the same memory as `(keys, values)` per layer, each
            `[(slots + beside) * length + 1, heads, width]`; else None.
        spare: the pools' last place, which belongs to no slot.
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
        budget: int | None = None,
        token_major: bool | None = None,
        beside: int = 0,
    ) -> None:
        self.slots, self.beside, self.length = slots, beside, length
        total = slots + beside
        self.spare = total * length
        self.pools: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None
        if token_major is None:
            token_major = device.type == "cuda"
        if token_major:
            pools, _ = _zeros((2, layers, self.spare + 1, heads, width), dtype, device)
            self._pages = None  # they are counted as the head-major layout has them
            self.pools = tuple(zip(*pools, strict=True))
            self._cache = pools[:, :, :-1].unflatten(2, (total, length)).transpose(3, 4)
        else:
            size = (2, layers, total, heads, length, width)
            self._cache, self._pages = _zeros(size, dtype, device)
        self.budget = total * length if budget is None or self._pages is None else budget
        self.reserved = 0
        """Tokens that the sequences in the slots may come to write, in whole pages."""
        self._page_tokens = max(mmap.PAGESIZE // (width * dtype.itemsize), 1)
        self._reserved = [0] * total
        self._written = [0] * total  # tokens whose memory has not been given back since
        self._idle = 0  # the sum of these over the free slots
        self.keys = tuple(self._cache[0])
        self.values = tuple(self._cache[1])
        self._free = list(range(slots))
        self._free_beside = list(range(slots, total))

    @classmethod
    def for_model(
        cls,
        config: Any,
        *,
        slots: int,
        length: int,
        like: torch.Tensor,
        dtype: torch.dtype | None = None,
        budget: int | None = None,
        token_major: bool | None = None,
        beside: int = 0,
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
            budget=budget,
            token_major=token_major,
            beside=beside,
        )

    @staticmethod
    def lazy(device: torch.device) -> bool:
        """Whether the cache takes memory only where written, and gives it back."""
        return device.type == "cpu" and sys.platform == "linux"

    @staticmethod
    def token_bytes(config: Any, dtype: torch.dtype) -> int:
        """What one token's keys and values of all layers take."""
        layers, heads, width = model_shape(config)
        return 2 * layers * heads * width * dtype.itemsize

    @property
    def free(self) -> int:
        """Slots that are free for sequences that decode."""
        return len(self._free)

    @property
    def free_beside(self) -> int:
        """Slots that are free for the others alone."""
        return len(self._free_beside)

    @property
    def nbytes(self) -> int:
        return int(self._cache.nbytes)

    @property
    def bytes_per_token(self) -> int:
        """What one token's keys and values of all layers take."""
        return self.nbytes // ((self.slots + self.beside) * self.length)

    @property
    def most(self) -> int:
        """Tokens of the longest sequence that there will ever be room for."""
        return min(self.length, self.budget)

    def has_slot(self, *, decodes: bool = True, without: Rows[int] = ()) -> bool:
        """Whether there is a slot, if not the memory, for one that decodes or does not.

        Args:
            without: slots that could be given back for it.
        """
        free = self._free_for(decodes)
        return bool(free) or any(self._free_of(slot) is free for slot in without)

    def fits(self, tokens: int, *, decodes: bool = True, without: Rows[int] = ()) -> bool:
        """Whether a sequence of so many tokens can have a slot now.

        Args:
            decodes: it needs a slot of those that decode.
            without: slots that could be given back for it.
        """
        left = self.budget - self.reserved + sum(self._reserved[slot] for slot in without)
        return self.has_slot(decodes=decodes, without=without) and self._whole(tokens) <= left

    def take(self, tokens: int | None = None, *, decodes: bool = True) -> int:
        """A free slot, the lowest: decoding reads the slots in use as one dense block.

        Args:
            tokens: the most that it will hold, of those that `fits` has found room for; by
                default as many as fit in a slot.
            decodes: see `fits`.
        """
        slot = heapq.heappop(self._free_for(decodes))
        need, written = self._whole(self.length if tokens is None else tokens), self._written[slot]
        self._idle -= written
        if self.reserved + self._idle + max(need, written) > self.budget:
            for other in (slot, *self._free, *self._free_beside):
                self._return_pages(other)
            self._idle = written = 0
        self._reserved[slot] = max(need, written)
        self.reserved += self._reserved[slot]
        return slot

    def release(self, slot: int, *, used: int, wipe: bool = False) -> None:
        """Give a slot back, and the memory of a long sequence to the system.

        Args:
            used: tokens that it may have held.
            wipe: overwrite them. What a sequence leaves behind is masked out for the next
                one, but a mask does not hide a NaN.
        """
        if wipe:
            self._cache[:, :, slot, :, :used].zero_()
        self.reserved -= self._reserved[slot]
        self._reserved[slot] = 0
        self._written[slot] = max(self._written[slot], self._whole(used))
        if self._written[slot] > (_KEPT if slot < self.slots + _KEEPING else 0):
            self._return_pages(slot)
        self._idle += self._written[slot]
        heapq.heappush(self._free_of(slot), slot)

    def _free_for(self, decodes: bool) -> list[int]:
        return self._free if decodes or not self.beside else self._free_beside

    def _free_of(self, slot: int) -> list[int]:
        return self._free if slot < self.slots else self._free_beside

    def _whole(self, tokens: int) -> int:
        """Tokens rounded up to whole pages of memory."""
        whole = -(-tokens // self._page_tokens) * self._page_tokens
        return min(whole, self.length, self.budget)

    def _return_pages(self, slot: int) -> None:
        """Drop the pages that lie wholly in a slot; they read as zero from then on."""
        if self._pages is None or self._written[slot] == 0:
            return
        self._written[slot] = 0
        size = self._cache[0, 0, slot].nbytes
        for part in range(self._cache.shape[0] * self._cache.shape[1]):
            start = (part * (self.slots + self.beside) + slot) * size
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > first:
                self._pages.madvise(mmap.MADV_DONTNEED, first, end - first)

    def places(self, slots: list[int], index: list[int]) -> torch.Tensor:
        """Where `write` is to put tokens.

        Args:
            slots, index: of each token, its slot and its place there.

        Returns:
            Each token's rows in a layer's cache seen as `[.., width]`, head by head:
            `[tokens * heads]`. If token-major, its place in a pool: `[tokens]`.
        """
        heads = 1 if self.pools is not None else self.keys[0].shape[1]
        first = torch.tensor(slots) * (heads * self.length) + torch.tensor(index)
        if self.pools is None:
            first = (first[:, None] + torch.arange(heads) * self.length).flatten()
        return upload(first, self._cache.device)

    def write(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put the heads of tokens, `[heads, tokens, width]`, where `places` says."""
        width = key.shape[2]
        for new, cache, i in ((key, self.keys[layer], 0), (value, self.values[layer], 1)):
            rows = new.transpose(0, 1)
            if self.pools is None:
                cache.view(-1, width).index_copy_(0, places, rows.reshape(-1, width))
            else:
                self.pools[layer][i].index_copy_(0, places, rows)

    def save(self, slot: int, tokens: int) -> torch.Tensor:
        """A copy of a slot's first tokens: `[2, layers, heads, tokens, width]`."""
        copy: torch.Tensor = self._cache[:, :, slot, :, :tokens].clone()
        return copy

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
    # And a machine would not lend more address space at once than it has memory.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    pages = mmap.mmap(-1, size, flags=flags)
    # Huge pages would be filled whole at a slot's first token.
    with contextlib.suppress(OSError):  # a kernel without huge pages does not know the word
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape), pages
