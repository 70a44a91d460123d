"""Prefix cache: keys and values of prompt beginnings that come again and again.

Of a rendered prompt only what the template's author wrote is kept, never what a user did. So
an entry tells nothing about anyone's input, by its content or by the time an answer takes, and
all tenants share it. A prompt of bare token ids does not say who wrote what; what it has in
common with the same tenant's last one is kept for that tenant alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import torch

MIN_TOKENS = 8
"""Shorter beginnings are not worth a copy."""

_TENANTS = 256


class Prefix(NamedTuple):
    """The beginning of a prompt. `owner` is the tenant who may use it; empty for all."""

    ids: tuple[int, ...]
    owner: str = ""


class CommonBeginnings:
    """Finds what a tenant's prompts of bare token ids have in common. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def find(self, tenant: str, ids: tuple[int, ...]) -> Prefix | None:
        """What these ids share with the tenant's last ones, less what must be computed."""
        with self._lock:
            last = self._last.pop(tenant, ())
            self._last[tenant] = ids
            if len(self._last) > _TENANTS:
                self._last.popitem(last=False)
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, last, strict=False)) if a != b),
            min(len(ids), len(last)),
        )
        shared = min(shared, len(ids) - 1)
        return Prefix(ids[:shared], f"tenant {tenant}") if shared >= MIN_TOKENS else None


class PrefixCache:
    """Least recently used entries go first when `limit` bytes are full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Prefix, torch.Tensor] = OrderedDict()
        self.nbytes = 0
        self.hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._entries

    def get(self, prefix: Prefix) -> torch.Tensor | None:
        """The saved keys and values of exactly these tokens."""
        saved = self._entries.get(prefix)
        if saved is not None:
            self._entries.move_to_end(prefix)
            self.hits += 1
        return saved

    def put(self, prefix: Prefix, saved: torch.Tensor) -> None:
        """Keep what `KVSlots.save` returned, unless it alone is over the limit.

        Nor is anything kept that is not a number: in a chunk with a broken token even the
        rows before it may be spoiled, and nobody else is to start from them.
        """
        if saved.nbytes > self._limit or prefix in self._entries or not saved.isfinite().all():
            return
        self._entries[prefix] = saved
        self.nbytes += saved.nbytes
        while self.nbytes > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes
