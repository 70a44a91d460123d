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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptflow.errors import MissingDependency, ModelCorrupt, UnsupportedModel
from gptflow.models.source import Progress

if TYPE_CHECKING:
    import numpy as np

_PACKAGES = ("gguf", "numpy", "tokenizers")
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


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
    """De-quantise a GGUF file of the Llama family into `folder`, with bfloat16 weights.

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
        fields = _Fields(path, {name: field.contents for name, field in reader.fields.items()})
        config = _config(path, fields, {tensor.name for tensor in reader.tensors})
        _write_tokenizer(path, folder, fields, config)
        _write_weights(path, folder, reader.tensors, config, progress)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise ModelCorrupt(f"{path.name} is not a readable GGUF file: {error}.") from None
    _write_json(folder / "config.json", config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special)
    licence = fields.get("general.license")
    return licence if isinstance(licence, str) else None


class _Fields:
    """The file's key-value part, read on demand and once: the vocabulary takes a while."""

    def __init__(self, path: Path, readers: dict[str, Any]) -> None:
        self._path = path
        self._readers = readers
        self._values: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._readers else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._readers:
            raise ModelCorrupt(f"{self._path.name} lacks {key}.")
        if key not in self._values:
            self._values[key] = self._readers[key]()
        return self._values[key]


def _config(path: Path, fields: _Fields, tensors: set[str]) -> dict[str, Any]:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise UnsupportedModel(
            f"{path.name} is of the architecture {architecture!r}; only Llama is converted.",
            hint="Pull the model in its safetensors form.",
        )
    if "rope_freqs.weight" in tensors or any(".rope.scaling." in key for key in fields):
        raise UnsupportedModel(
            f"{path.name} scales its rotary positions, which is not converted.",
            hint="Pull the model in its safetensors form.",
        )
    heads = fields["llama.attention.head_count"]
    size = fields["llama.embedding_length"]
    theta = _shortest(fields.get("llama.rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": size,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length", size // heads),
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": _shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
        "use_cache": True,
    }


def _shortest(value: float) -> float:
    """Undo what single precision did to a number that was written in decimal: 1e-05."""
    return next(x for n in range(1, 18) if _as_float32(x := float(f"{value:.{n}g}")) == value)


def _as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _write_tokenizer(path: Path, folder: Path, fields: _Fields, config: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
    }
    kind = f"{fields['tokenizer.ggml.model']}/{fields.get('tokenizer.ggml.pre', '')}"
    if not kind.startswith("gpt2/") or kind[5:] not in known:
        raise UnsupportedModel(
            f"{path.name} has a tokenizer of the kind {kind!r}, which is not converted.",
            hint="Pull the model in its safetensors form.",
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = known[kind[5:]]
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    for wanted, add in (
        (_CONTROL, tokenizer.add_special_tokens),
        (_USER_DEFINED, tokenizer.add_tokens),
    ):
        add(
            [
                AddedToken(t, normalized=False)
                for t, n in zip(tokens, types, strict=True)
                if n == wanted
            ]
        )
    tokenizer.save(str(folder / "tokenizer.json"))

    def token(key: str) -> str | None:
        number = fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if number is None else tokens[number]

    special = {
        f"{name}_token": token(key)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    tokenizer_config = {
        # Not the class of GPT-2: for that, transformers 5 replaces the file's pre-tokenizer,
        # and what is a number to Unicode but not 0-9 is split differently.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "chat_template": fields.get("tokenizer.chat_template"),
        **special,
    }
    kept = {key: value for key, value in tokenizer_config.items() if value is not None}
    _write_json(folder / "tokenizer_config.json", kept)


def _write_weights(
    path: Path, folder: Path, tensors: Any, config: dict[str, Any], progress: Progress
) -> None:
    import gguf

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        name, _ = _name(path, tensor.name)
        shape = [int(n) for n in reversed(tensor.shape)]  # GGUF counts from the fastest axis
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their alignment
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, tensor in enumerate(tensors):
            progress("converting", done, len(tensors))
            _, part = _name(path, tensor.name)
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if part in ("attn_q", "attn_k"):
                values = _interleave(values, heads if part == "attn_q" else kv_heads)
            file.write(_bfloat16(values).tobytes())
    progress("converting", len(tensors), len(tensors))


def _name(path: Path, name: str) -> tuple[str, str]:
    if match := _BLOCK.fullmatch(name):
        layer, part = match.groups()
        prefix = f"model.layers.{layer}."
    else:
        part, prefix = name.removesuffix(".weight"), ""
    if part not in _TENSORS or not name.endswith(".weight"):
        raise UnsupportedModel(f"{path.name} has a tensor {name!r}, which is not converted.")
    return f"{prefix}{_TENSORS[part]}.weight", part


def _interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's order of rotary dimensions: pairs side by side, not halves apart."""
    rows, columns = values.shape
    halves = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return halves.reshape(rows, columns)


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round to the nearest bfloat16, ties to even, as its upper 16 bits."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
