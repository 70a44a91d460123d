"""Prefix cache: keys and values of prompt beginnings that come again and again.

What a template's author wrote is kept for everybody. What a user wrote is kept only once the
same tenant sends it a second time, and for that tenant alone: so neither an answer nor the time
that it takes tells anyone about another's input. Keys and values depend on the LoRA weights
that they were computed with, so every adapter has entries of its own.

A prompt is matched token by token: it starts from the longest beginning that it shares with
any entry that it may use, whether or not that entry goes on differently.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

import torch

MIN_TOKENS = 8
"""Shorter beginnings are not worth a copy."""

_TENANTS = 128
_RECENT = 8
"""A tenant's last prompts that a new one is compared with."""

Ids = tuple[int, ...]


class Scope(NamedTuple):
    """Who may use an entry.

    Attributes:
        lora: key of the LoRA weights; empty for none.
        tenant: None for everybody: only what template authors wrote is there.
    """

    lora: str = ""
    tenant: str | None = None


class Prefix(NamedTuple):
    """What a prompt may start from, and what of it to keep for others.

    Attributes:
        ids: the tokens that may be copied; at least one more must be computed.
        lora: key of the LoRA weights it is computed with; empty for none.
        tenant: whose it is.
        author: leading tokens that the template's author alone decided.
        common: leading tokens that the same tenant sent before.
    """

    ids: Ids
    lora: str = ""
    tenant: str = ""
    author: int = 0
    common: int = 0

    def parts(self, start: int, stop: int) -> list[tuple[Scope, int]]:
        """What to keep of it once rows `start:stop` have been computed: for whom, how much."""
        found = []
        if start < self.author <= stop:
            found.append((Scope(self.lora), self.author))
        if start < self.common <= stop:
            found.append((Scope(self.lora, self.tenant), self.common))
        return found


class CommonBeginnings:
    """Finds what a tenant's prompts have in common. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: OrderedDict[Scope, deque[Ids]] = OrderedDict()

    def find(self, scope: Scope, ids: Ids) -> int:
        """How many leading tokens these ids share with one of the last in the same scope."""
        with self._lock:
            recent = self._recent.setdefault(scope, deque(maxlen=_RECENT))
            self._recent.move_to_end(scope)
            others = tuple(recent)
            recent.append(ids)
            if len(self._recent) > _TENANTS:
                self._recent.popitem(last=False)
        return max((_shared(ids, other) for other in others), default=0)


class _Entry:
    """Saved keys and values of `ids`."""

    __slots__ = ("ids", "saved", "scope")

    def __init__(self, scope: Scope, ids: Ids, saved: torch.Tensor) -> None:
        self.scope = scope
        self.ids = ids
        self.saved = saved


class PrefixCache:
    """Keeps beginnings within a limit; the least recently used go first.

    Args:
        limit: bytes of keys and values to hold.
        pinned: bytes of them for what template authors wrote; it does not give way to what
            users did. Beyond that it is kept like everything else.
        serves: tells whether an adapter is still loaded, by the key of its LoRA weights.
    """

    def __init__(
        self,
        limit: int,
        *,
        pinned: int | None = None,
        serves: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._limit = limit
        self._quota = limit // 2 if pinned is None else pinned
        self._serves = serves
        # Sorted by tokens: the longest common beginning is next to where a prompt would stand.
        self._sorted: dict[Scope, list[_Entry]] = {}
        self._pinned: OrderedDict[_Entry, None] = OrderedDict()
        self._others: OrderedDict[_Entry, None] = OrderedDict()
        self.nbytes = 0
        self.pinned_bytes = 0
        self.hits = 0
        self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._pinned) + len(self._others)

    def get(self, prefix: Prefix) -> torch.Tensor | None:
        """Saved keys and values of the longest beginning of `prefix.ids` that is known.

        Returns:
            A part of what `KVSlots.save` returned, or None for less than `MIN_TOKENS`.
        """
        best, length = None, MIN_TOKENS - 1
        for scope in (Scope(prefix.lora), Scope(prefix.lora, prefix.tenant)):
            entry, shared = self._longest(scope, prefix.ids)
            if entry is not None and shared > length:
                best, length = entry, shared
        if best is None:
            return None
        self._touch(best)
        self.hits += 1
        self.hit_tokens += length
        return best.saved[:, :, :, :length]

    def wants(self, scope: Scope, ids: Ids) -> bool:
        """Whether these tokens are worth a copy: nobody has left one, and somebody may come."""
        near, shared = self._longest(scope, ids)
        if near is not None and shared == len(ids):
            self._touch(near)
            return False
        return len(ids) >= MIN_TOKENS and (not scope.lora or self._serves(scope.lora))

    def put(self, scope: Scope, ids: Ids, saved: torch.Tensor) -> None:
        """Keep what `KVSlots.save` returned for these tokens, unless it alone is too large.

        Nor is anything kept that is not a number: in a chunk with a broken token even the
        rows before it may be spoiled, and nobody else is to start from them.
        """
        if saved.nbytes > self._limit or not self.wants(scope, ids) or not saved.isfinite().all():
            return
        near, shared = self._longest(scope, ids)
        if near is not None and shared == len(near.ids):  # the new one begins with all of it
            self._remove(near)
        entry = _Entry(scope, ids, saved)
        bisect.insort(self._sorted.setdefault(scope, []), entry, key=lambda e: e.ids)
        self.nbytes += saved.nbytes
        if scope.tenant is None and saved.nbytes <= self._quota:
            self._pinned[entry] = None
            self.pinned_bytes += saved.nbytes
        else:
            self._others[entry] = None
        self._shrink()

    def drop(self, lora: str) -> None:
        """Free all that was computed with some LoRA weights."""
        for entry in [*self._pinned, *self._others]:
            if entry.scope.lora == lora:
                self._remove(entry)

    def _longest(self, scope: Scope, ids: Ids) -> tuple[_Entry | None, int]:
        entries = self._sorted.get(scope, [])
        at = bisect.bisect_left(entries, ids, key=lambda entry: entry.ids)
        return max(
            ((entry, _shared(entry.ids, ids)) for entry in entries[max(at - 1, 0) : at + 1]),
            key=lambda found: found[1],
            default=(None, 0),
        )

    def _touch(self, entry: _Entry) -> None:
        (self._pinned if entry in self._pinned else self._others).move_to_end(entry)

    def _shrink(self) -> None:
        while self.pinned_bytes > self._quota:
            entry, _ = self._pinned.popitem(last=False)
            self.pinned_bytes -= entry.saved.nbytes
            self._others[entry] = None
        while self.nbytes > self._limit:
            self._remove(next(iter(self._others or self._pinned)))

    def _remove(self, entry: _Entry) -> None:
        if entry in self._pinned:
            del self._pinned[entry]
            self.pinned_bytes -= entry.saved.nbytes
        else:
            del self._others[entry]
        entries = self._sorted[entry.scope]
        del entries[bisect.bisect_left(entries, entry.ids, key=lambda e: e.ids)]
        if not entries:
            del self._sorted[entry.scope]
        self.nbytes -= entry.saved.nbytes


def _shared(a: Ids, b: Ids) -> int:
    """Length of the longest common beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # slices compare in C; a loop over tokens would not
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
