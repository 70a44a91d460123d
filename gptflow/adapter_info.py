"""Adapters: the names of their files, and what an engine says about one that it has loaded."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gptflow.adapter import Manifest

MANIFEST = "manifest.json"
LORA_CONFIG = "adapter_config.json"
LORA_WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"


FloorKind = Literal["naive_bayes", "tfidf_logistic", "dictionary"]


def floor_files(head: str, kind: FloorKind) -> tuple[str, ...]:
    """Where a head's simple model lies: its terms, and its numbers if it has any."""
    terms = f"floor-{head}.json"
    return (terms,) if kind == "dictionary" else (terms, f"floor-{head}.safetensors")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A loaded adapter.

    Attributes:
        alias: the name that tasks and requests use.
        sha256: over all its files: what tells one version from another.
        manifest: None for a bare PEFT folder.
        rank: the largest rank of its LoRA matrices; 0 if it has heads only.
        nbytes: that its weights take while they are resident.
        resident: whether they are; the next request brings them back otherwise.
    """

    alias: str
    sha256: str
    manifest: Manifest | None
    rank: int
    nbytes: int
    resident: bool = True

    @property
    def reference(self) -> str:
        """`alias@sha256`, as it stands in a result's provenance."""
        return f"{self.alias}@{self.sha256}"

    def answers(self, kind: str) -> bool:
        """Whether it has a head of this kind."""
        return self.manifest is not None and any(
            spec.kind == kind for spec in self.manifest.heads.values()
        )


def combine(files: Mapping[str, str]) -> str:
    """One SHA-256 for a folder: of the lines `<sha256>  <file name>`, sorted by name."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
