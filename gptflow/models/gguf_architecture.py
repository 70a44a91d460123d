"""Architecture: how a GGUF file of one family of models maps to transformers.

llama.cpp gives tensors short names, and stores some of them in the form that its own code
computes with: see `Architecture`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any

from gptflow.errors import UnsupportedModel
from gptflow.models.gguf_fields import Fields

_COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """One family of models.

    Attributes:
        describe: the family's part of `config.json`, from the file's fields.
        tensors: by llama.cpp's name for a tensor, transformers'.
        interleaved: rotary dimensions of queries and keys are stored as pairs side by side,
            where transformers has them half a head apart.
        norm_offset: what the stored weights of norms have more than transformers'.
    """

    describe: Callable[[Fields], dict[str, Any]]
    tensors: Mapping[str, str]
    interleaved: bool = False
    norm_offset: float = 0.0


def find(fields: Fields) -> Architecture:
    """The architecture that a file states.

    Raises:
        UnsupportedModel: it is not one that is converted.
    """
    name = fields["general.architecture"]
    if name not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{fields.file} is of the architecture {name!r}; "
            f"{' and '.join(_ARCHITECTURES)} are converted.",
            hint="Pull the model in its safetensors form.",
        )
    return _ARCHITECTURES[name]


def make_config(fields: Fields, tensors: set[str]) -> dict[str, Any]:
    """The model's `config.json`.

    Args:
        tensors: the names of all tensors in the file.

    Raises:
        UnsupportedModel: the file has a setting that is not converted.
    """
    architecture = find(fields)
    if "rope_freqs.weight" in tensors or any(".rope.scaling." in key for key in fields):
        raise UnsupportedModel(
            f"{fields.file} scales its rotary positions, which is not converted.",
            hint="Pull the model in its safetensors form.",
        )
    key = fields["general.architecture"]
    heads = fields[f"{key}.attention.head_count"]
    size = fields[f"{key}.embedding_length"]
    return {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": size,
        "intermediate_size": fields[f"{key}.feed_forward_length"],
        "num_hidden_layers": fields[f"{key}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{key}.attention.head_count_kv", heads),
        "head_dim": fields.get(f"{key}.attention.key_length", size // heads),
        "max_position_embeddings": fields[f"{key}.context_length"],
        "rms_norm_eps": _shortest(fields[f"{key}.attention.layer_norm_rms_epsilon"]),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
        "use_cache": True,
        **architecture.describe(fields),
    }


def _llama(fields: Fields) -> dict[str, Any]:
    theta = _shortest(fields.get("llama.rope.freq_base", 10_000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_parameters": _rope(theta),
    }


def _gemma3(fields: Fields) -> dict[str, Any]:
    layers = fields["gemma3.block_count"]
    # Every sixth layer sees everything; the file does not say so, llama.cpp knows it too.
    pattern = fields.get("gemma3.attention.sliding_window_pattern", 6)
    if not isinstance(pattern, int):
        raise UnsupportedModel(
            f"{fields.file} lists which layers have a sliding window, which is not converted.",
            hint="Pull the model in its safetensors form.",
        )
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        # The largest of the family alone has another scale, and it is scaled in other ways too.
        "query_pre_attn_scalar": fields["gemma3.attention.key_length"],
        "sliding_window": fields["gemma3.attention.sliding_window"],
        "layer_types": [
            "sliding_attention" if (layer + 1) % pattern else "full_attention"
            for layer in range(layers)
        ],
        "rope_parameters": {
            "full_attention": _rope(_shortest(fields["gemma3.rope.freq_base"])),
            "sliding_attention": _rope(
                _shortest(fields.get("gemma3.rope.freq_base_swa", 10_000.0))
            ),
        },
        "attn_logit_softcapping": fields.get("gemma3.attn_logit_softcapping"),
        "final_logit_softcapping": fields.get("gemma3.final_logit_softcapping"),
        "use_bidirectional_attention": False,
    }


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _shortest(value: float) -> float:
    """Undo what single precision did to a number that was written in decimal: 1e-05."""
    return next(x for n in range(1, 18) if _as_float32(x := float(f"{value:.{n}g}")) == value)


def _as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


_ARCHITECTURES = {
    "llama": Architecture(
        _llama, {**_COMMON, "ffn_norm": "post_attention_layernorm"}, interleaved=True
    ),
    "gemma3": Architecture(
        _gemma3,
        {
            **_COMMON,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_offset=1.0,  # Gemma's norm multiplies by 1 + weight; llama.cpp stores the sum
    ),
}
