"""GgufFile: a llama.cpp file turned, once, into the folder that transformers and we read.

transformers can read such files too, but wants one more package for it and does not save what it
read. The file says all that is needed, so it is read here. numpy does the work, not torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptflow.errors import MissingDependency, ModelCorrupt, UnsupportedModel
from gptflow.models import gguf_architecture, gguf_tokenizer
from gptflow.models.files import write_json
from gptflow.models.gguf_fields import Fields
from gptflow.models.source import Progress

if TYPE_CHECKING:
    import numpy as np

_PACKAGES = ("gguf", "numpy", "tokenizers")
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_ROWS = 16_384
"""Rows of a tensor to convert at a time: in float32 an embedding may take a gigabyte."""


def require_packages() -> None:
    """Raise before anything is downloaded if the file could not be read afterwards.

    Raises:
        MissingDependency: a package is not installed.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(
                f"Converting this model needs the package {name!r}.",
                hint="Install gptflow[runtime].",
            )


def convert(path: Path, folder: Path, progress: Progress) -> str | None:
    """De-quantise a GGUF file into `folder`, with bfloat16 weights.

    Returns:
        the licence that the file states.

    Raises:
        MissingDependency: a package is not installed.
        ModelCorrupt: the file is malformed.
        UnsupportedModel: its architecture or tokenizer is not one that is converted here.
    """
    require_packages()
    import gguf

    progress("converting", 0, None)
    try:
        reader = gguf.GGUFReader(path)
        fields = Fields(path.name, {name: field.contents for name, field in reader.fields.items()})
        config = gguf_architecture.make_config(fields, {tensor.name for tensor in reader.tensors})
        gguf_tokenizer.write(folder, fields, config)
        _write_weights(folder, fields, reader.tensors, config, progress)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise ModelCorrupt(f"{path.name} is not a readable GGUF file: {error}.") from None
    write_json(folder / "config.json", config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special)
    licence = fields.get("general.license")
    return licence if isinstance(licence, str) else None


def _write_weights(
    folder: Path, fields: Fields, tensors: Any, config: dict[str, Any], progress: Progress
) -> None:
    import gguf

    architecture = gguf_architecture.find(fields)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        name, _ = _name(fields.file, tensor.name, architecture)
        shape = [int(n) for n in reversed(tensor.shape)]  # GGUF counts from the fastest axis
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their alignment
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, tensor in enumerate(tensors):
            progress("converting", done, len(tensors))
            _, part = _name(fields.file, tensor.name, architecture)
            interleaved = architecture.interleaved and part in heads
            # What is put in another order is small, and needs all of its rows.
            size = len(tensor.data) if interleaved else _ROWS
            for first in range(0, len(tensor.data), size):
                rows = tensor.data[first : first + size]
                values = gguf.quants.dequantize(rows, tensor.tensor_type)
                if interleaved:
                    values = _straighten(values, heads[part])
                if part.endswith("_norm"):
                    values = values - architecture.norm_offset
                file.write(_bfloat16(values).tobytes())
    progress("converting", len(tensors), len(tensors))


def _name(file: str, name: str, architecture: gguf_architecture.Architecture) -> tuple[str, str]:
    """A tensor's name in transformers, and llama.cpp's word for what it is."""
    if match := _BLOCK.fullmatch(name):
        layer, part = match.groups()
        prefix = f"model.layers.{layer}."
    else:
        part, prefix = name.removesuffix(".weight"), ""
    if part not in architecture.tensors or not name.endswith(".weight"):
        raise UnsupportedModel(f"{file} has a tensor {name!r}, which is not converted.")
    return f"{prefix}{architecture.tensors[part]}.weight", part


def _straighten(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's order of rotary dimensions: pairs side by side, not halves apart."""
    rows, columns = values.shape
    halves = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return halves.reshape(rows, columns)


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round to the nearest bfloat16, ties to even, as its upper 16 bits."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
