"""Loading: a model folder to a running engine, or a refusal that says what would work."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from gptflow.engine import native
from gptflow.engine.engine import TorchEngine
from gptflow.engine.lora import LoRABank
from gptflow.engine.native import Library
from gptflow.engine.native.install import quantize
from gptflow.engine.native.linear import Format
from gptflow.engine.native.step import serves
from gptflow.engine.runner import Runner
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots, model_shape
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import ConfigError, ModelCorrupt, ModelNotFound, UnsupportedModel
from gptflow.request import ModelInfo

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "int16", "int8"]

_WORKS = "GPT-2, Llama, SmolLM2, Qwen2, Qwen3, Mistral and Gemma 3 models are served."
_LAYERS = ("full_attention", "sliding_attention")
_ROPE = ("default", "linear", "llama3", "yarn")
# Settings by which a model scales or caps its logits or attention scores.
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping", "logits_scaling", "logit_scale")
_FORMATS: dict[str, Format] = {"int8": Format.INT8, "int16": Format.INT16}
_TEST_TOKENS = 12
_TEST_WINDOW = 64
"""The largest sliding window whose effect the test waits for."""
_TEST_SIMILARITY = 0.99


def load(
    folder: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Dtype = "auto",
    slots: int = 64,
    slot_tokens: int = 2048,
    threads: int | None = None,
    kv_bytes: int | None = None,
    adapter_bytes: int = 512 << 20,
    prefix_bytes: int = 256 << 20,
    model_id: str | None = None,
    sha256: str | None = None,
) -> TorchEngine:
    """Open a model folder and start an engine on it.

    Args:
        folder: with config.json, tokenizer.json and safetensors weights.
        device: auto takes CUDA where there is a device.
        dtype: what the linear layers compute in. The integers need a CPU that the compiled
            kernels are for. auto takes the fastest that answers like float32: int16 there,
            bfloat16 where the hardware computes in it, else float32.
        slots: sequences that run at the same time.
        slot_tokens: most tokens of one sequence, at most the model's context.
        threads: of the CPU; None leaves torch's own choice.
        kv_bytes: most memory for keys and values; see `TorchEngine`.
        adapter_bytes: weights of adapters to hold; idle ones give way to others.
        prefix_bytes: keys and values of prompts' beginnings to keep.
        model_id: what the model is called; by default the folder's name.
        sha256: over the weight files; computed if not given.

    Raises:
        ModelNotFound: there is no such folder, or no weights in it.
        ModelCorrupt: a file cannot be read.
        UnsupportedModel: the architecture needs what the engine does not do.
        ConfigError: CUDA is asked for and there is none, or the machine has too little memory.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise ModelNotFound(
            f"{folder} is not a model folder: config.json and *.safetensors are needed.",
            hint="gptflow models list",
        )
    where = _device(device)
    config, context = _read_config(folder)
    library, missing = _kernels(where, config)
    chosen = _dtype(dtype, where, missing)
    if chosen == "bfloat16":
        library = None  # the kernels compute in float32
    numbers = _FORMATS.get(chosen)
    vocabulary = Vocabulary.from_folder(folder)
    # GNU's OpenMP lets idle helper threads wait without sleeping only while there are no more of
    # them than cores. Those of the thread that opens the model end with it; else the engine's
    # would have to be woken for every operator.
    with ThreadPoolExecutor(1, thread_name_prefix="gptflow-loader") as loader:
        model, lora = loader.submit(
            _open, folder, config, where, chosen, library, places=slots
        ).result()
    _give_back_memory()
    info = ModelInfo(
        id=model_id or folder.name,
        sha256=sha256 or _sha256(weights),
        context=context,
        dtype=chosen,
    )
    log.info("model %s: %s, %d tokens of context, on %s", info.id, chosen, context, where)
    return TorchEngine(
        model,
        vocabulary,
        info,
        slots=slots,
        slot_tokens=slot_tokens,
        threads=threads,
        cache_dtype=_cache_dtype(numbers),
        library=library,
        kv_bytes=kv_bytes,
        lora=lora,
        adapter_bytes=adapter_bytes,
        prefix_bytes=prefix_bytes,
    )


def _give_back_memory() -> None:
    """Return to the system what opening the model took for a while; glibc would keep it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _read_config(folder: Path) -> tuple[Any, int]:
    """The model's settings, which pass `check_config`, and its context."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"The model in {folder} cannot be loaded: {error}.") from error
    return config, check_config(config)


def _open(
    folder: Path,
    config: Any,
    device: torch.device,
    dtype: Dtype,
    library: Library | None,
    *,
    places: int,
) -> tuple[Any, LoRABank]:
    """The model, ready to run, and what adapters may add to, so many at a time."""
    try:
        with no_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelCorrupt(f"The model in {folder} cannot be loaded: {error}.") from error
    model.to(device).eval()
    model.config.pad_token_id = None  # with one, GPT-2 looks for padding at every step
    lora = LoRABank.for_model(
        model, places=places, library=library, half=_FORMATS.get(dtype) is not None
    )
    check_model(model, library, _FORMATS.get(dtype), lora)
    return model, lora


def check_config(config: Any) -> int:
    """Refuse what the engine's attention would get wrong; returns the model's context.

    Raises:
        UnsupportedModel: naming the setting.
    """
    kind = config.model_type
    architecture = _architecture(config)
    if architecture is None:
        raise UnsupportedModel(f"{kind} models do not generate text.", hint=_WORKS)
    if not getattr(architecture, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{kind} models ({architecture.__name__}) do not let their attention be replaced.",
            hint=_WORKS,
        )
    if getattr(config, "text_config", None) is not None:
        raise UnsupportedModel(f"{kind} models read more than text.", hint=_WORKS)
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        raise UnsupportedModel(f"{kind} models have no fixed context.", hint=_WORKS)
    for name in _CAPS:
        value = getattr(config, name, None)
        if value not in (None, 1, 1.0):
            raise UnsupportedModel(
                f"{kind} sets {name} to {value}, which is not computed here.", hint=_WORKS
            )
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedModel(
            f"{kind} sets use_bidirectional_attention: it does not write from left to right.",
            hint=_WORKS,
        )
    for layer in getattr(config, "layer_types", None) or ():
        if layer not in _LAYERS:
            raise UnsupportedModel(
                f"{kind} has layers of {layer}; {' and '.join(_LAYERS)} are computed.", hint=_WORKS
            )
    rope = getattr(config, "rope_parameters", None) or {}
    # Some models have one set per kind of layer.
    for part in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        if part.get("rope_type", "default") not in _ROPE:
            raise UnsupportedModel(
                f"{part['rope_type']} RoPE depends on who else is in the batch.", hint=_WORKS
            )
    return int(context)


def _architecture(config: Any) -> type | None:
    try:
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return None
    return found if isinstance(found, type) else None


def _window(config: Any) -> int | None:
    """The sliding window that some of the model's layers have."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def check_model(
    model: PreTrainedModel,
    library: Library | None = None,
    numbers: Format | None = None,
    lora: LoRABank | None = None,
) -> None:
    """Run a few tokens both ways: as transformers does, and over slots in chunks.

    Whatever the settings do not tell, such as attention sinks, shows in the difference.

    Args:
        library: the compiled kernels, if they are to be used.
        numbers: quantise the model to these in between.
        lora: what adapters may add to, which integer layers then call themselves.

    Raises:
        UnsupportedModel: the two differ, or the model does not run over slots at all.
    """
    name = type(model).__name__
    config = model.config
    window = _window(config)
    # A row past the window and one to decode after it, if they are not far.
    length = window + 4 if window is not None and window <= _TEST_WINDOW else 0
    length = min(max(length, _TEST_TOKENS), config.max_position_embeddings)
    ids = [(7 * i + 1) % config.vocab_size for i in range(length)]
    weight = next(model.parameters())
    slots = KVSlots.for_model(
        config, slots=1, length=length, like=weight, dtype=_cache_dtype(numbers)
    )
    sequence = Sequence(ids)
    sequence.slot = slots.take()
    cuts = [0, length // 2, length - 1, length]  # the last one decodes
    with torch.inference_mode():
        expected = model(torch.tensor([ids], device=weight.device), use_cache=False).logits[0]
        if library is not None and numbers is not None:
            quantize(model, library, numbers, lora.targets if lora else None)
        runner = Runner(model, slots, config.vocab_size, library)
        try:
            hidden = [
                runner.forward([Chunk(sequence, start, stop)])
                for start, stop in itertools.pairwise(cuts)
            ]
            actual = runner.logits(torch.cat(hidden))
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise UnsupportedModel(
                f"{name} does not run over slots: {error}.", hint=_WORKS
            ) from error
    if window is not None and runner.windows != {window}:
        raise UnsupportedModel(
            f"{name} has a sliding window of {window} tokens of which its attention is not told.",
            hint=_WORKS,
        )
    similarity = torch.cosine_similarity(actual, expected.float(), dim=-1).min().item()
    if not similarity >= _TEST_SIMILARITY:
        raise UnsupportedModel(
            f"{name} gives other answers over slots (similarity {similarity:.3f}).", hint=_WORKS
        )


def _device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device.", hint="Set device to cpu or auto.")
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(asked)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing on the terminal of whoever loads a model."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _cache_dtype(numbers: Format | None) -> torch.dtype | None:
    """Keys and values beside integer layers have half precision: decoding is bound by memory."""
    return None if numbers is None else torch.float16


def _kernels(device: torch.device, config: Any) -> tuple[Library | None, str]:
    """The compiled kernels where they serve this model on this machine, else why not."""
    if device.type != "cpu":
        return None, "they are for the CPU"
    _, kv_heads, width = model_shape(config)
    if not serves(config.num_attention_heads, kv_heads, width):
        return None, f"attention heads of {width} numbers are not among what they compute"
    try:
        return native.load(), ""
    except native.Unavailable as reason:
        return None, str(reason)


def _dtype(asked: Dtype, device: torch.device, missing: str) -> Dtype:
    """What to compute in; `missing` says why there are no compiled kernels."""
    if asked in _FORMATS and missing:
        raise ConfigError(
            f"dtype {asked} needs the compiled kernels: {missing}.", hint="Set dtype to auto."
        )
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16"
    if not missing:
        return "int16"
    log.info("no compiled kernels: %s", missing)
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bfloat16"
    return "float32"


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
