"""Adapters in memory: loaded while serving, used by alias, dropped when idle or unloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from gptflow.adapter_info import (
    HEAD_WEIGHTS,
    LORA_CONFIG,
    LORA_WEIGHTS,
    MANIFEST,
    AdapterInfo,
    combine,
)
from gptflow.engine import peft
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import LoRAWeights, Projection
from gptflow.errors import AdapterCorrupt, AdapterMemoryFull, AdapterMismatch, AdapterNotFound
from gptflow.request import ModelInfo

if TYPE_CHECKING:
    from gptflow.adapter import Manifest

log = logging.getLogger(__name__)

_PEFT_HEADS = ("score.weight", "classifier.weight")
"""Where PEFT saves the head of a sequence classifier."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearHead:
    """A trained head: `weight [rows, width]` and `bias [rows]`, in float32."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states `[..., width]`."""
        return torch.nn.functional.linear(hidden.float().cpu(), self.weight, self.bias)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """An adapter's weights, ready to serve. It never changes: a new version is a new object.

    Attributes:
        sha256: over all its files.
        lora: None if it has heads only: it then shares the base model's keys and values.
    """

    sha256: str
    manifest: Manifest | None
    lora: LoRAWeights | None
    heads: Mapping[str, LinearHead]

    @property
    def nbytes(self) -> int:
        heads = sum(head.weight.nbytes + head.bias.nbytes for head in self.heads.values())
        return heads + (self.lora.nbytes if self.lora else 0)


class AdapterReader:
    """Reads adapter folders for one model.

    Args:
        width: of the model's final hidden states.
        dtype: to keep LoRA matrices in.
    """

    def __init__(
        self,
        model: ModelInfo,
        projections: Mapping[str, Projection],
        *,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._model = model
        self._projections = projections
        self._width = width
        self._dtype = dtype
        self._device = device

    @classmethod
    def for_model(cls, model: Any, info: ModelInfo, lora: LoRABank) -> AdapterReader:
        """A reader for a transformers model and its bank."""
        return cls(
            info,
            {name: target.projection for name, target in lora.targets.items()},
            width=model.config.hidden_size,
            dtype=lora.kept_in,
            device=lora.device,
        )

    def read(self, name: str, folder: Path) -> Adapter:
        """Read and check a folder; see `gptflow.adapter` for what is in it.

        Raises:
            AdapterNotFound: there is no adapter in the folder.
            AdapterCorrupt: a file is missing, malformed or altered.
            AdapterMismatch: the adapter was made for another model.
        """
        manifest, files = _files(name, folder)
        if manifest is not None and self._model.sha256 not in manifest.base.sha256:
            raise AdapterMismatch(
                f"Adapter {name!r} was trained on {manifest.base.id}, and the engine serves "
                f"{self._model.id}, whose weights are others.",
                hint=f"gptflow models pull {manifest.base.id}",
            )
        lora, saved = None, dict[str, torch.Tensor]()
        if LORA_CONFIG in files:
            tensors = _tensors(name, LORA_WEIGHTS, files[LORA_WEIGHTS])
            key = combine({n: _sha256(files[n]) for n in (LORA_CONFIG, LORA_WEIGHTS)})
            parts = peft.read(
                name,
                key,
                files[LORA_CONFIG],
                tensors,
                self._projections,
                dtype=self._dtype,
                device=self._device,
            )
            lora, saved = parts.lora, dict(parts.saved)
        return Adapter(
            sha256=combine({n: _sha256(data) for n, data in files.items()}),
            manifest=manifest,
            lora=lora,
            heads=self._heads(name, manifest, files.get(HEAD_WEIGHTS), saved),
        )

    def _heads(
        self,
        name: str,
        manifest: Manifest | None,
        data: bytes | None,
        saved: dict[str, torch.Tensor],
    ) -> dict[str, LinearHead]:
        specs = manifest.heads if manifest else {}
        tensors = _tensors(name, HEAD_WEIGHTS, data) if data is not None else {}
        if saved:
            # A classifier that PEFT has trained: it is the only head, under PEFT's own name.
            known = [key for key in _PEFT_HEADS if key in saved]
            if len(saved) != 1 or not known or len(specs) != 1 or tensors:
                raise AdapterMismatch(
                    f"Adapter {name!r} replaces {min(saved)}, which is no head of its manifest."
                )
            tensors = {f"{next(iter(specs))}.weight": saved[known[0]]}
        heads: dict[str, LinearHead] = {}
        for head, spec in specs.items():
            weight = tensors.pop(f"{head}.weight", None)
            bias = tensors.pop(f"{head}.bias", None)
            if weight is None:
                raise AdapterCorrupt(f"Adapter {name!r}: head {head!r} has no weight.")
            for tensor, shape in ((weight, (spec.rows, self._width)), (bias, (spec.rows,))):
                if tensor is not None and tuple(tensor.shape) != shape:
                    raise AdapterMismatch(
                        f"Adapter {name!r}: head {head!r} has the shape {list(tensor.shape)}; "
                        f"its manifest and the model ask for {list(shape)}."
                    )
            heads[head] = LinearHead(
                weight=weight.float().contiguous(),
                bias=torch.zeros(spec.rows) if bias is None else bias.float(),
            )
        if tensors:
            raise AdapterCorrupt(
                f"Adapter {name!r}: {min(tensors)} belongs to no head of its manifest."
            )
        return heads


@dataclasses.dataclass(slots=True, eq=False)
class _Entry:
    """What an alias stands for; `adapter` is None while it is not resident.

    Attributes:
        lora: key of its LoRA weights, or empty.
        users: requests that hold it.
        used: when one last took it, by the pool's own clock.
    """

    folder: Path
    info: AdapterInfo
    adapter: Adapter | None
    lora: str
    users: int = 0
    used: int = 0
    loading: threading.Lock = dataclasses.field(default_factory=threading.Lock)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """An adapter that a request uses: it stays in memory until it is given back."""

    info: AdapterInfo
    adapter: Adapter
    _entry: _Entry


class AdapterPool:
    """The adapters that requests can name. Thread-safe; reads files in the caller's thread.

    Adapters that nobody uses make room for others, the least recently used first, and are
    read again when a request names them.

    Args:
        limit: bytes of weights to hold.
    """

    def __init__(self, reader: AdapterReader, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._lock = threading.Lock()  # guards what follows
        self._entries: dict[str, _Entry] = {}
        self._dropped: list[_Entry] = []  # unloaded or replaced while requests use them
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
            AdapterMemoryFull: what is in use leaves no room for it.
        """
        folder = Path(folder)
        adapter = self._reader.read(alias, folder)
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

    def acquire(self, alias: str) -> Lease:
        """The adapter that an alias stands for at this moment, kept until `release`.

        Raises:
            AdapterNotFound: there is no such alias.
            AdapterCorrupt: it had been dropped, and its files are no longer what they were.
            AdapterMemoryFull: what is in use leaves no room for it.
        """
        while True:
            with self._lock:
                entry = self._entries.get(alias)
                if entry is None:
                    raise self._unknown(alias)
                if entry.adapter is not None:
                    entry.users += 1
                    entry.used = next(self._clock)
                    return Lease(entry.info, entry.adapter, entry)
            with entry.loading:
                self._reload(alias, entry)

    def release(self, lease: Lease) -> None:
        """Give back what `acquire` gave."""
        entry = lease._entry
        with self._lock:
            entry.users -= 1
            if entry.users == 0 and entry in self._dropped:
                self._dropped.remove(entry)

    def _reload(self, alias: str, entry: _Entry) -> None:
        if entry.adapter is not None:
            return
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

    def _serves(self, lora: str) -> bool:
        return any(entry.lora == lora for entry in self._entries.values())

    def _retire(self, entry: _Entry) -> str:
        if entry.users:
            self._dropped.append(entry)
        return "" if self._serves(entry.lora) else entry.lora

    def _make_room(self, alias: str, nbytes: int, spare: _Entry | None = None) -> None:
        """Drop idle adapters until so many bytes fit; `spare` is about to go anyway."""
        free = self._limit - self._nbytes()
        if spare is not None and spare.adapter is not None and not spare.users:
            free += spare.adapter.nbytes
        idle = [
            e for e in self._entries.values() if e.adapter is not None and not e.users
            and e is not spare
        ]  # fmt: skip
        victims: list[_Entry] = []
        for entry in sorted(idle, key=lambda e: e.used):
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

    def _nbytes(self) -> int:
        entries = [*self._entries.values(), *self._dropped]
        return sum(entry.adapter.nbytes for entry in entries if entry.adapter is not None)

    def _unknown(self, alias: str) -> AdapterNotFound:
        known = ", ".join(sorted(self._entries)) or "none"
        return AdapterNotFound(f"No adapter {alias!r} is loaded; loaded: {known}.")


def _files(name: str, folder: Path) -> tuple[Manifest | None, dict[str, bytes]]:
    """What a folder's manifest lists, or a PEFT folder's two files; each is read once."""
    if not folder.is_dir():
        raise AdapterNotFound(f"Adapter {name!r}: {folder} is not a folder.")
    if (folder / MANIFEST).is_file():
        # Only who has one needs pydantic.
        from gptflow.adapter import Manifest

        text = _read(name, folder / MANIFEST)
        manifest = Manifest.parse(text, name=name)
        files = {file: _read(name, folder / file) for file in manifest.files}
        for file, expected in manifest.files.items():
            if _sha256(files[file]) != expected:
                raise AdapterCorrupt(
                    f"Adapter {name!r}: {file} is not the file that its manifest lists.",
                    hint="Copy the adapter again.",
                )
        for file in (LORA_CONFIG, LORA_WEIGHTS, HEAD_WEIGHTS):
            if file not in files and (folder / file).exists():
                raise AdapterCorrupt(f"Adapter {name!r}: its manifest does not list {file}.")
        return manifest, {**files, MANIFEST: text}
    if (folder / LORA_CONFIG).is_file():
        return None, {file: _read(name, folder / file) for file in (LORA_CONFIG, LORA_WEIGHTS)}
    raise AdapterNotFound(f"Adapter {name!r}: {folder} holds neither {MANIFEST} nor {LORA_CONFIG}.")


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdapterCorrupt(
            f"Adapter {name!r}: {path.name} cannot be read: {error.strerror}."
        ) from error


def _tensors(name: str, file: str, data: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterCorrupt(f"Adapter {name!r}: {file} is not a safetensors file.") from error
    peft.check_numbers(name, file, tensors)
    return tensors


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
