"""Files: which files make a model, and the checks they pass before anything opens them.

Nothing here runs code from a model or trusts a length that it states.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from gptflow.errors import ModelCorrupt, UnsupportedModel

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_OTHERS = frozenset(
    {
        CONFIG,
        INDEX,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    }
)
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_MAX_JSON = 256 << 20
_MAX_HEADER = 100 << 20
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights that will be loaded."""
    return _WEIGHTS.fullmatch(name) is not None


def is_allowed(name: str) -> bool:
    """Whether a file of this name belongs to a model. Everything else stays outside."""
    return name in _OTHERS or is_weights(name)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check everything about a model's folder that can be checked without its checksums.

    Returns:
        the content of `config.json`.

    Raises:
        UnsupportedModel: no safetensors weights or no tokenizer in a form that is read here,
            or the model demands that code of its own be run.
        ModelCorrupt: a file is malformed.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = [name for name in names if is_weights(name)]
    if not weights:
        unsafe = [name for name in names if name.lower().endswith(_UNSAFE_SUFFIXES)]
        found = (
            f"only {', '.join(unsafe)}, which can run code when it is loaded" if unsafe else "none"
        )
        raise UnsupportedModel(
            f"{folder} must hold its weights as safetensors; it has {found}.",
            hint="Convert it with `save_pretrained(..., safe_serialization=True)`, "
            "then `gptflow models pull PATH`.",
        )
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise UnsupportedModel(
            f"{folder} has no tokenizer.json.",
            hint="Save the model's fast tokenizer into the folder with `save_pretrained`.",
        )
    config = read_json(folder / CONFIG)
    documents = [name for name in names if name.endswith(".json") and name in _OTHERS]
    for name in documents:
        # The tokenizer's configuration can name code to run too.
        if name.endswith("config.json") and read_json(folder / name).get("auto_map"):
            raise UnsupportedModel(
                f"{folder / name} asks to run code that comes with the model (`auto_map`).",
                hint="Use a model of an architecture that transformers itself has.",
            )
    if INDEX in names:
        _check_index(folder, set(weights))
    for name in weights:
        check_safetensors(folder / name)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelCorrupt: the file is missing, too large to be true, or is not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelCorrupt(f"{path} is too large for a model's JSON file.")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelCorrupt(f"{path} is missing.", hint="Pull the model again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path} must hold a JSON object.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as people can read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_safetensors(path: Path) -> None:
    """Check a safetensors file's header against the size of the file.

    Raises:
        ModelCorrupt: it is not safetensors, or a tensor lies outside the file, overlaps
            another, leaves a gap, or has a size other than its shape's.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix[:4] == b"PK\x03\x04" or (prefix[:1] == b"\x80" and prefix[1:2] in b"\2\3\4\5"):
            raise ModelCorrupt(
                f"{path} is a pickle under the name of safetensors: loading it could run code.",
                hint="Delete it, and do not trust where it came from.",
            )
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_MAX_HEADER, size - 8):
            raise _malformed(path, f"its header claims {length} bytes of a file of {size}")
        header = file.read(length)
    try:
        tensors = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"its header is not JSON ({error})") from None
    if not isinstance(tensors, dict):
        raise _malformed(path, "its header is not a JSON object")
    tensors.pop("__metadata__", None)
    end = 0
    for start, stop, name in sorted(_span(path, name, spec) for name, spec in tensors.items()):
        if start != end:
            problem = "overlaps another" if start < end else "leaves a gap before it"
            raise _malformed(path, f"tensor {name!r} {problem}")
        end = stop
    if end != size - 8 - length:
        raise _malformed(path, f"its tensors take {end} bytes, the file has {size - 8 - length}")


def _span(path: Path, name: str, spec: object) -> tuple[int, int, str]:
    match spec:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            if dtype not in _BITS or not all(type(n) is int and n >= 0 for n in shape):
                raise _malformed(path, f"tensor {name!r} has an unknown type or shape")
            if start < 0 or (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
                raise _malformed(path, f"tensor {name!r} has offsets that do not fit its shape")
            return start, stop, name
        case _:
            raise _malformed(path, f"tensor {name!r} is not described")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two tensors of one name, readers disagree about which one counts.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _check_index(folder: Path, weights: set[str]) -> None:
    parts = read_json(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ModelCorrupt(f"{folder / INDEX} has no weight_map.")
    named = set(map(str, parts.values()))
    if wrong := sorted(name for name in named if not is_weights(name)):
        raise ModelCorrupt(f"{folder / INDEX} names {wrong[0]!r}, which is not a weight file.")
    if missing := sorted(named - weights):
        raise ModelCorrupt(f"{folder / missing[0]} is missing.", hint="Pull the model again.")


def _malformed(path: Path, problem: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{path} is not a safetensors file: {problem}.", hint="Pull the model again."
    )
