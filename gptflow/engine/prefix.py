"""Prefix cache: keys and values of prompt beginnings that come again and again.

Only what a template's author wrote is kept, never what a user did. So an entry tells nothing
about anyone's input, by its content or by the time an answer takes, and all tenants share it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

MIN_TOKENS = 8
"""Shorter beginnings are not worth a copy."""


class PrefixCache:
    """Least recently used entries go first when `limit` bytes are full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self.nbytes = 0
        self.hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, prefix: tuple[int, ...]) -> bool:
        return prefix in self._entries

    def get(self, prefix: tuple[int, ...]) -> torch.Tensor | None:
        """The saved keys and values of exactly these tokens."""
        saved = self._entries.get(prefix)
        if saved is not None:
            self._entries.move_to_end(prefix)
            self.hits += 1
        return saved

    def put(self, prefix: tuple[int, ...], saved: torch.Tensor) -> None:
        """Keep what `KVSlots.save` returned, unless it alone is over the limit."""
        if saved.nbytes > self._limit or prefix in self._entries:
            return
        self._entries[prefix] = saved
        self.nbytes += saved.nbytes
        while self.nbytes > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes
