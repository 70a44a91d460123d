"""Random models, vocabularies and adapters for a GPU that reaches no network."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from gptflow.engine.engine import TorchEngine
from gptflow.engine.lora_weights import find_projections
from gptflow.engine.tokenizer import Vocabulary
from gptflow.request import ModelInfo

SMOL: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's."""

TINY: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}

KINDS = ("gpt2", "llama", "qwen3", "mistral-window", "gemma3-window")


def config(kind: str, shape: dict[str, Any] | None = None) -> transformers.PretrainedConfig:
    """The settings of a small model of one architecture; `shape` for Llama's."""
    common = (shape or TINY) | {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None}
    match kind:
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=common["vocab_size"], n_positions=512, n_embd=96, n_layer=3, n_head=3,
                eos_token_id=0, bos_token_id=0,
            )  # fmt: skip
        case "llama":
            return transformers.LlamaConfig(**common)
        case "qwen3":
            return transformers.Qwen3Config(**common)
        case "mistral-window":
            return transformers.MistralConfig(**common, sliding_window=16)
        case "gemma3-window":
            rope = {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
            return transformers.Gemma3TextConfig(
                **common | {"num_hidden_layers": 4}, query_pre_attn_scalar=32, sliding_window=16,
                rope_parameters=rope, layer_types=["sliding_attention", "full_attention"] * 2,
            )  # fmt: skip
    raise ValueError(kind)


def model(
    settings: transformers.PretrainedConfig,
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    spread: float = 4.0,
    seed: int = 11,
) -> Any:
    """A random model: the same weights, up to rounding, for the same settings and seed.

    Args:
        spread: what the weights are multiplied by. More makes logits differ more, so that
            rounding decides less.
    """
    settings = copy.deepcopy(settings)  # an engine writes in its model's
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
            # The weights of all types are those that bfloat16 can say.
            parameter.copy_(parameter.bfloat16())
    # Not `made.to(dtype)`: it would round the frequencies of the positions as well.
    if dtype != torch.float32:
        weights = made.state_dict()
        made = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype)
        made.load_state_dict(weights)
    made.config.pad_token_id = None
    return made.to(device).eval()


def tokenizer_json(size: int) -> str:
    """A byte-level vocabulary of so many tokens, most of which no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"token{i}" for i in range(len(names), size)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def vocabulary(size: int) -> Vocabulary:
    """The same for an engine."""
    return Vocabulary(tokenizer_json(size), eos_ids=(0,))


def engine(made: Any, **settings: Any) -> TorchEngine:
    """An engine on a model, which is its own from then on."""
    options: dict[str, Any] = {"slots": 8, "slot_tokens": 512} | settings
    size = made.config.vocab_size
    info = ModelInfo(id="random", sha256="0" * 64, context=made.config.max_position_embeddings)
    return TorchEngine(made, vocabulary(size), info, **options)


def write_adapter(folder: Path, made: Any, *, rank: int, seed: int) -> Path:
    """A random adapter for a model, over all its projections, in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in find_projections(made).items():
        a = torch.randn(rank, shape.fan_in, generator=generator) / shape.fan_in**0.5
        b = torch.randn(shape.fan_out, rank, generator=generator) / 4
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
        "target_modules": "all-linear", "bias": "none", "use_dora": False,
        "fan_in_fan_out": made.config.model_type == "gpt2", "modules_to_save": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(made: Any, folder: Path) -> Any:
    """The model with an adapter of `write_adapter` in its weights."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name in find_projections(made):
            a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            weight = made.get_submodule(name).weight
            delta = (b @ a).to(weight)
            weight += delta.T if made.config.model_type == "gpt2" else delta
    return made
