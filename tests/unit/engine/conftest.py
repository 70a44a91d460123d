"""Tiny random models, a vocabulary trained on the spot, and plain transformers to compare with."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptflow.engine import native
from gptflow.engine.engine import TorchEngine
from gptflow.engine.lora_weights import find_projections
from gptflow.engine.native import Library
from gptflow.engine.tokenizer import Vocabulary
from gptflow.heads import Generate
from gptflow.request import ModelInfo, Request

_CACHE_HOME = os.environ.get("XDG_CACHE_HOME")
"""What it was before tests began."""

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm sun.",
    "Shares fell by ten percent after the company reported lower profit than expected.",
    'Answer with one word: positive, negative or neutral. {"name": "Ada", "age": 36}',
    "user assistant system Yes No good bad the a of to in is that it was for on are with",
] * 4


@cache
def tokenizer_json() -> str:
    """A byte-level vocabulary of 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tokenizer_json(), eos_ids=(0,))


def _config(name: str) -> transformers.PretrainedConfig:
    size = vocabulary().size
    shape = {
        "vocab_size": size,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,  # the least that the compiled kernels serve
        "max_position_embeddings": 256,
        "eos_token_id": 0,
        "bos_token_id": 0,
        "pad_token_id": None,
    }
    match name:
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=size, n_positions=256, n_embd=48, n_layer=2, n_head=3,
                eos_token_id=0, bos_token_id=0,
            )  # fmt: skip
        case "llama":
            return transformers.LlamaConfig(**shape)
        case "qwen2":
            return transformers.Qwen2Config(**shape)
        case "qwen3":
            return transformers.Qwen3Config(**shape)
        case "mistral-window":
            return transformers.MistralConfig(**shape, sliding_window=16)
        case "qwen2-window" | "qwen3-window":
            kind = transformers.Qwen2Config if "2" in name else transformers.Qwen3Config
            return kind(
                **shape | {"num_hidden_layers": 3}, use_sliding_window=True, sliding_window=16,
                max_window_layers=1,
            )  # fmt: skip
        case "gemma3-window":
            rope = {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
            return transformers.Gemma3TextConfig(
                **shape | {"num_hidden_layers": 4, "num_key_value_heads": 1},
                query_pre_attn_scalar=12, sliding_window=16, rope_parameters=rope,
                layer_types=["sliding_attention", "full_attention"] * 2,
            )  # fmt: skip
    raise AssertionError(name)


@cache
def make_model(name: str = "llama", copy_: str = "engine") -> transformers.PreTrainedModel:
    """A random model; `copy_` tells apart equal ones, as an engine keeps what it is given."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = transformers.AutoModelForCausalLM.from_config(_config(name)).eval()
        with torch.no_grad():  # spread the logits, so that rounding decides nothing
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
    return model


def reference(name: str = "llama") -> transformers.PreTrainedModel:
    return make_model(name, "reference")


def greedy(
    name: str, ids: tuple[int, ...], new: int, model: transformers.PreTrainedModel | None = None
) -> tuple[int, ...]:
    """What transformers generates by itself."""
    model = model or reference(name)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tuple(out[0, len(ids) :].tolist())


def logprob(
    name: str,
    ids: tuple[int, ...],
    continuation: tuple[int, ...],
    model: transformers.PreTrainedModel | None = None,
) -> float:
    """Sum of the continuation's token log-probabilities, by one plain forward pass."""
    model = model or reference(name)
    with torch.inference_mode():
        logits = model(torch.tensor([ids + continuation])).logits[0]
    rows = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return sum(rows[i, token].item() for i, token in enumerate(continuation))


def prompt_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    ids = torch.randint(10, vocabulary().size, (length,), generator=generator)
    return tuple(ids.tolist())


def write_lora(
    folder: Path,
    name: str = "llama",
    *,
    rank: int = 4,
    seed: int = 0,
    modules: Iterable[str] | None = None,
    ranks: Mapping[str, int] | None = None,
    **config: object,
) -> Path:
    """A random adapter in PEFT's format, as PEFT 0.21 writes it.

    Args:
        modules: that have matrices, all projections by default.
        ranks: per module, where it is not `rank`.
        config: more settings.
    """
    generator = torch.Generator().manual_seed(seed)
    projections = find_projections(reference(name))
    tensors = {}
    for module in projections if modules is None else modules:
        shape = projections[module]
        r = (ranks or {}).get(module, rank)
        a = torch.randn(r, shape.fan_in, generator=generator) / shape.fan_in**0.5
        b = torch.randn(shape.fan_out, r, generator=generator) / 4
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": "all-linear", "bias": "none", "use_dora": False, "lora_dropout": 0.1,
        "base_model_name_or_path": name, "fan_in_fan_out": name == "gpt2", "modules_to_save": None,
        "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False,
        "megatron_core": "megatron.core", "qalora_group_size": 16, "loftq_config": {},
    } | config  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged(
    name: str, folder: Path, scale: Callable[[str], float] = lambda _: 2.0
) -> transformers.PreTrainedModel:
    """The model with an adapter's additions in its weights; `scale` is by module."""
    model = copy.deepcopy(reference(name))
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for key, a in tensors.items():
            if ".lora_A." not in key:
                continue
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = scale(module) * tensors[key.replace("lora_A", "lora_B")] @ a
            weight = model.get_submodule(module).weight
            weight += delta.T if name == "gpt2" else delta
    return model


def write_manifest(folder: Path, **fields: object) -> Path:
    """A manifest over the files that are in the folder."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    manifest = {
        "task": "demo.task",
        "base": {"id": "llama", "sha256": ["1" * 64, "0" * 64]},
        "files": files,
    } | fields
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_trained(folder: Path, **lora: Any) -> Path:
    """A random adapter with a head for two moods and one that tags names and places."""
    write_lora(folder, **lora)
    generator = torch.Generator().manual_seed(7)
    heads = {
        "mood": {"kind": "classify", "labels": ["good", "bad"]},
        "names": {"kind": "tag", "labels": ["name", "place"]},
    }
    tensors = {}
    for name, rows in (("mood", 2), ("names", 5)):
        tensors[f"{name}.weight"] = torch.randn(rows, 48, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(rows, generator=generator)
    save_file(tensors, folder / "head.safetensors")
    return write_manifest(folder, heads=heads)


def ask(ids: tuple[int, ...], new: int = 200, **more: Any) -> Request:
    """So many tokens after a prompt."""
    return Request(prompt=ids, head=Generate(max_tokens=new), ignore_eos=True, **more)


class Pause:
    """Holds the engine's thread before its next step."""

    def __init__(self, engine: TorchEngine) -> None:
        self._step = engine._step
        self._go = threading.Event()
        self.reached = threading.Event()
        engine._step = self  # type: ignore[method-assign]

    def __call__(self) -> None:
        self.reached.set()
        assert self._go.wait(30)
        self._step()

    def release(self) -> None:
        self._go.set()


Make = Callable[..., TorchEngine]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say `ALSO_COMPILED` run their engines with and without the kernels."""
    if getattr(metafunc.module, "ALSO_COMPILED", False) and "library" in metafunc.fixturenames:
        metafunc.parametrize("library", ["torch", "compiled"], indirect=True)


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Library | None:
    """The compiled kernels; None in tests of torch's own operators."""
    if getattr(request, "param", None) != "compiled":
        return None
    try:
        # From the cache that models are in, too, not the test's own: compiling takes long.
        with pytest.MonkeyPatch.context() as patch:
            if _CACHE_HOME is None:
                patch.delenv("XDG_CACHE_HOME", raising=False)
            else:
                patch.setenv("XDG_CACHE_HOME", _CACHE_HOME)
            return native.load()
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def make_engine(library: Library | None) -> Iterator[Make]:
    """Starts engines on tiny models, and closes them at the end."""
    engines: list[TorchEngine] = []

    def make(
        name: str = "llama", *, model: object = None, kernels: Any = library, **settings: Any
    ) -> TorchEngine:
        options = {"slots": 8, "slot_tokens": 256, "threads": 1} | settings
        engine = TorchEngine(
            model or make_model(name),
            vocabulary(),
            ModelInfo(id=name, sha256="0" * 64, context=256),
            library=kernels,
            **options,
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
        left = engine.stats()
        assert engine._thread.is_alive() is False
        assert isinstance(json.dumps(dict(left)), str)


@pytest.fixture(params=["gpt2", "llama", "qwen2", "qwen3"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The helpers above; test modules cannot import a conftest."""
    return SimpleNamespace(
        Pause=Pause,
        ask=ask,
        greedy=greedy,
        logprob=logprob,
        make_model=make_model,
        merged=merged,
        prompt_ids=prompt_ids,
        reference=reference,
        tokenizer_json=tokenizer_json,
        vocabulary=vocabulary(),
        write_lora=write_lora,
        write_manifest=write_manifest,
        write_trained=write_trained,
    )
