"""Model: what the store knows about one model that it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

SourceKind = Literal["hub", "pypi", "path"]


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A folder of checked files that the engine can load.

    Attributes:
        name: in the store; for a folder used where it lies, the name it would get.
        path: the folder, with `config.json`, `tokenizer.json` and safetensors weights.
        sha256: identifies the weights: of the weight file, or, where the weights are split,
            of the lines `<sha256>  <file name>` of all parts, sorted by name.
        source: where the files came from.
        size_bytes: of all files together.
        architecture: the class that `config.json` names, for instance `LlamaForCausalLM`.
        context: the most tokens of one sequence that the model was made for.
        licence: its identifier, or `unknown`.
        terms: where to read the licence, if that is known.
    """

    name: str
    path: Path
    sha256: str
    source: SourceKind
    size_bytes: int
    architecture: str
    context: int
    licence: str
    terms: str | None = None
