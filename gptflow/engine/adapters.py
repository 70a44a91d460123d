"""Adapters: their folders, read and checked, and what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
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
    combine,
    floor_files,
)
from gptflow.engine import peft
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import LoRAWeights, Projection
from gptflow.errors import AdapterCorrupt, AdapterMismatch, AdapterNotFound
from gptflow.request import ModelInfo

if TYPE_CHECKING:
    from gptflow.adapter import Manifest
    from gptflow.dictionary_tagger import DictionaryTagger
    from gptflow.linear_text import LinearText

    SimpleModel = LinearText | DictionaryTagger

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
        floors: by head, the simple models that answer in place of heads.
    """

    sha256: str
    manifest: Manifest | None
    lora: LoRAWeights | None
    heads: Mapping[str, LinearHead]
    floors: Mapping[str, SimpleModel] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        heads = sum(head.weight.nbytes + head.bias.nbytes for head in self.heads.values())
        heads += sum(floor.nbytes for floor in self.floors.values())
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
            floors=_floors(name, manifest, files),
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


def _floors(
    name: str, manifest: Manifest | None, files: Mapping[str, bytes]
) -> dict[str, SimpleModel]:
    found: dict[str, SimpleModel] = {}
    for head, floor in (manifest.floors if manifest else {}).items():
        from gptflow.dictionary_tagger import DictionaryTagger
        from gptflow.linear_text import LinearText

        model = DictionaryTagger if floor.kind == DictionaryTagger.kind else LinearText
        contents = (files[file] for file in floor_files(head, floor.kind))
        found[head] = model.parse(*contents, name=f"adapter {name!r}")
        spec = manifest.heads[head] if manifest else None
        strange = set(found[head].labels) - set(getattr(spec, "labels", ()))
        if found[head].kind != floor.kind or strange:
            raise AdapterCorrupt(f"Adapter {name!r}: the floor {head!r} is not its manifest's.")
    return found


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
