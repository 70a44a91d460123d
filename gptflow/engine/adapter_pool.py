"""Adapters in memory: loaded while serving, used by alias, dropped when idle or unloaded.

A request names an adapter when it comes and needs its weights only while it runs. So those that
wait keep nothing in memory: hundreds of adapters may be asked for where a few fit.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptflow.adapter_info import AdapterInfo
from gptflow.engine.adapters import Adapter, AdapterReader, LinearHead
from gptflow.engine.lora_weights import LoRAWeights
from gptflow.errors import AdapterCorrupt, AdapterMemoryFull, AdapterNotFound, AdapterTooLarge

if TYPE_CHECKING:
    from gptflow.engine.adapters import SimpleModel

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class _Entry:
    """What an alias stands for; `adapter` is None while it is not resident.

    Attributes:
        lora: key of its LoRA weights, or empty.
        users: requests that run with it.
        used: when one last took it, by the pool's own clock.
        leases: of the requests that name it, whether or not they have begun.
    """

    folder: Path
    info: AdapterInfo
    adapter: Adapter | None
    lora: str
    users: int = 0
    used: int = 0
    loading: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    leases: weakref.WeakSet[Lease] = dataclasses.field(default_factory=weakref.WeakSet)


class Lease:
    """An adapter for one request: the version that its alias stood for when the request came.

    The engine's thread begins and pauses; whichever thread settles the future ends.

    Attributes:
        info: which one.
        lora: key of its LoRA weights, or empty.
        heads: its trained heads, from when the request first began.
        floors: the simple models in place of some, from then on.
    """

    def __init__(self, pool: AdapterPool, entry: _Entry) -> None:
        self.info = entry.info
        self.lora = entry.lora
        self.heads: Mapping[str, LinearHead] = {}
        self.floors: Mapping[str, SimpleModel] = {}
        self._pool = pool
        self._entry = entry
        self._lock = threading.Lock()  # guards what follows
        self._running = 0
        self._ended = False
        self._counted = False  # among the adapter's users
        entry.leases.add(self)

    def again(self) -> Lease:
        """One more, for somebody else who needs the same version."""
        return Lease(self._pool, self._entry)

    def begin(self) -> LoRAWeights | None:
        """A sequence begins to run: its weights stay in memory until `pause`.

        Raises:
            AdapterCorrupt: they had been dropped, and the files are no longer what they were.
            AdapterMemoryFull: those that others run with leave no room yet.
        """
        adapter = self._pool.hold(self._entry)  # which takes time if it is read from disk
        with self._lock:
            self._running += 1
            twice, self._counted = self._counted or self._ended, not self._ended
        if twice:
            self._pool.let_go(self._entry)
        self.heads = adapter.heads
        self.floors = adapter.floors
        return adapter.lora

    def pause(self) -> None:
        """A sequence that had begun runs no more, for now at least."""
        with self._lock:
            self._running -= 1
            over = self._counted and not self._running
            self._counted &= not over
        if over:
            self._pool.let_go(self._entry)

    def end(self) -> None:
        """The request has its answer, or never will."""
        with self._lock:
            self._ended = True
            over, self._counted = self._counted, False
        if over:
            self._pool.let_go(self._entry)


class AdapterPool:
    """The adapters that requests can name. Thread-safe; reads files in the caller's thread.

    Adapters that nobody runs with make room for others: first those that nobody waits for,
    then the least recently used. They are read again when a request begins that needs them.

    Args:
        limit: bytes of weights to hold.
    """

    def __init__(self, reader: AdapterReader, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._lock = threading.Lock()  # guards what follows
        self._entries: dict[str, _Entry] = {}
        # Unloaded or replaced, and still there for as long as requests need them.
        self._retired: weakref.WeakSet[_Entry] = weakref.WeakSet()
        self._clock = itertools.count()
        self.evictions = 0
        self.reloads = 0

    def stats(self) -> dict[str, int]:
        """Figures for `TorchEngine.stats`."""
        with self._lock:
            return {
                "adapters": len(self._entries),
                "adapters_resident": sum(e.adapter is not None for e in self._entries.values()),
                "adapter_bytes": self._nbytes(),
                "adapter_evictions": self.evictions,
                "adapter_reloads": self.reloads,
            }

    def infos(self) -> dict[str, AdapterInfo]:
        """All adapters by alias."""
        with self._lock:
            return {
                alias: dataclasses.replace(entry.info, resident=entry.adapter is not None)
                for alias, entry in self._entries.items()
            }

    def serves(self, lora: str) -> bool:
        """Whether some alias stands for an adapter with these LoRA weights, resident or not."""
        with self._lock:
            return self._serves(lora)

    def load(self, alias: str, folder: str | Path) -> tuple[AdapterInfo, str]:
        """Let an alias stand for the adapter in a folder from now on.

        Requests that have begun keep the version that they began with. The folder must stay:
        an adapter that was dropped for want of room is read from it again.

        Returns:
            The adapter, and the key of LoRA weights that this took out of service, or nothing.

        Raises:
            AdapterNotFound, AdapterCorrupt, AdapterMismatch: see `AdapterReader.read`.
            AdapterTooLarge: it alone takes more than the limit.
            AdapterMemoryFull: what is in use leaves no room for it.
        """
        folder = Path(folder)
        adapter = self._reader.read(alias, folder)
        if adapter.nbytes > self._limit:
            raise AdapterTooLarge(
                f"Adapter {alias!r} takes {adapter.nbytes} bytes; all adapters together may "
                f"take {self._limit}.",
                hint="Raise adapter_bytes (GPTFLOW_ADAPTER_BYTES).",
            )
        lora = adapter.lora
        info = AdapterInfo(
            alias=alias,
            sha256=adapter.sha256,
            manifest=adapter.manifest,
            rank=lora.rank if lora else 0,
            nbytes=adapter.nbytes,
        )
        entry = _Entry(folder, info, adapter, lora=lora.key if lora else "")
        with self._lock:
            before = self._entries.get(alias)
            self._make_room(alias, adapter.nbytes, spare=before)
            entry.used = next(self._clock)
            self._entries[alias] = entry
            return info, self._retire(before) if before else ""

    def unload(self, alias: str) -> str:
        """Forget an alias. Requests that use it go on; new ones fail.

        Returns:
            The key of LoRA weights that this took out of service, or nothing.

        Raises:
            AdapterNotFound: there is no such alias.
        """
        with self._lock:
            entry = self._entries.pop(alias, None)
            if entry is None:
                raise self._unknown(alias)
            return self._retire(entry)

    def lease(self, alias: str, *, read: bool = True) -> Lease:
        """The adapter that an alias stands for at this moment.

        `alias@sha256` is that very version, for as long as somebody has a lease of it, whatever
        the alias stands for by now. It is read here if it is not in memory and nothing has to go
        for it, unless `read` is false.

        Raises:
            AdapterNotFound: there is no such alias.
            AdapterCorrupt: it had been dropped, and its files are no longer what they were.
        """
        with self._lock:
            entry = self._entries.get(alias) or self._version(alias)
            if entry is None:
                raise self._unknown(alias)
            lease = Lease(self, entry)
            early = (
                read and entry.adapter is None and entry.info.nbytes <= self._limit - self._nbytes()
            )
        if early:
            try:
                self._reload(entry)
            except AdapterMemoryFull:  # somebody else was faster
                log.debug("adapter %s is read when its request begins", alias)
        return lease

    def hold(self, entry: _Entry) -> Adapter:
        """Have an adapter in memory and count one more that uses it; see `Lease.begin`."""
        while True:
            with self._lock:
                if entry.adapter is not None:
                    entry.users += 1
                    entry.used = next(self._clock)
                    return entry.adapter
            self._reload(entry)

    def let_go(self, entry: _Entry) -> None:
        """One less uses it."""
        with self._lock:
            entry.users -= 1

    def _reload(self, entry: _Entry) -> None:
        with entry.loading:
            if entry.adapter is not None:
                return
            alias = entry.info.alias
            with self._lock:
                self._make_room(alias, entry.info.nbytes)
            adapter = self._reader.read(alias, entry.folder)
            if adapter.sha256 != entry.info.sha256:
                raise AdapterCorrupt(
                    f"Adapter {alias!r}: the files in its folder have changed since it was loaded.",
                    hint="Load it again.",
                )
            with self._lock:
                self._make_room(alias, adapter.nbytes)
                entry.adapter = adapter
                self.reloads += 1

    def _version(self, reference: str) -> _Entry | None:
        every = (*self._entries.values(), *self._retired) if "@" in reference else ()
        return next((entry for entry in every if entry.info.reference == reference), None)

    def _serves(self, lora: str) -> bool:
        return any(entry.lora == lora for entry in self._entries.values())

    def _retire(self, entry: _Entry) -> str:
        self._retired.add(entry)
        return "" if self._serves(entry.lora) else entry.lora

    def _make_room(self, alias: str, nbytes: int, spare: _Entry | None = None) -> None:
        """Drop idle adapters until so many bytes fit; `spare` is about to go anyway."""
        free = self._limit - self._nbytes()
        if spare is not None and spare.adapter is not None and not spare.users:
            free += spare.adapter.nbytes
        idle = [
            entry
            for entry in (*self._entries.values(), *self._retired)
            if entry.adapter is not None and not entry.users and entry is not spare
        ]
        victims: list[_Entry] = []
        for entry in sorted(idle, key=self._use_for_others):
            if free >= nbytes:
                break
            victims.append(entry)
            free += entry.info.nbytes
        if free < nbytes:
            raise AdapterMemoryFull(
                f"Adapter {alias!r} takes {nbytes} bytes; {max(free, 0)} can be had.",
                hint="Try again when less is in use, or raise adapter_bytes.",
            )
        for entry in victims:
            entry.adapter = None
            self.evictions += 1
            log.info("adapter %s was dropped to make room", entry.info.alias)

    def _use_for_others(self, entry: _Entry) -> tuple[bool, bool, int]:
        """By what is most easily missed: whether somebody waits for it, could read it again."""
        waited_for = bool(entry.leases)
        return waited_for, waited_for and entry in self._retired, entry.used

    def _nbytes(self) -> int:
        entries = [*self._entries.values(), *self._retired]
        return sum(entry.adapter.nbytes for entry in entries if entry.adapter is not None)

    def _unknown(self, alias: str) -> AdapterNotFound:
        known = ", ".join(sorted(self._entries)) or "none"
        return AdapterNotFound(f"No adapter {alias!r} is loaded; loaded: {known}.")
