"""Loads the engine that the settings name. Found by name, so that callers never import torch."""

from __future__ import annotations

import importlib.util
import logging

from gptflow.config import Settings
from gptflow.errors import ConfigError, MissingDependency
from gptflow.request import Engine

logger = logging.getLogger(__name__)

_RUNTIME = ("torch", "transformers", "safetensors", "llguidance")
_REMOTE = ("httpx2", "jsonschema", "tokenizers")

SCRIPTED = "scripted"
"""`GPTFLOW_MODEL=scripted` serves canned answers: for testing a queue without a model.
`scripted:200` gives them out at 200 tokens a second, in each slot: for testing it under load."""


def is_scripted(model: str) -> bool:
    """Whether this name of a model stands for canned answers."""
    return model.partition(":")[0] == SCRIPTED


def load_engine(settings: Settings) -> Engine:
    """Load the settings' model, pulling it first where it is missing, or find its server.

    Raises:
        MissingDependency: a package that the engine needs is not installed.
        ConfigError: the settings of a model server are incomplete or do not fit it.
        ServerUnavailable: the model server cannot be reached.
        ModelError: the model is not to be had, or is not one that the engine serves.
    """
    if is_scripted(settings.model):
        return _script(settings)
    if settings.engine == "openai":
        return _connect(settings)
    _require(_RUNTIME, "Running a model", extra="runtime")
    from gptflow.models import ModelStore

    store = ModelStore(
        settings.cache_dir, offline=settings.offline, accepted=settings.accept_licences
    )
    store.ensure(settings.model)
    # Every answer names the model's hash, so what is loaded has to be what has that hash.
    model = store.verify(settings.model)
    # Only now: importing torch takes seconds, which a missing model need not cost.
    from gptflow.engine import load

    engine: Engine = load(
        model.path,
        device=settings.device,
        dtype=settings.dtype,
        slots=settings.slots,
        slot_tokens=settings.slot_tokens,
        threads=settings.threads,
        kv_bytes=settings.kv_bytes,
        adapter_bytes=settings.adapter_bytes,
        prefix_bytes=settings.prefix_bytes,
        model_id=model.name,
        sha256=model.sha256,
    )
    return engine


def _script(settings: Settings) -> Engine:
    from gptflow.testing import ScriptedEngine

    logger.warning("There is no model: every answer is scripted (GPTFLOW_MODEL=scripted).")
    _, timed, pace = settings.model.partition(":")
    try:
        tokens_per_s = float(pace) if timed else None
    except ValueError:
        tokens_per_s = 0.0
    if tokens_per_s is not None and not 0 < tokens_per_s < 1e9:
        raise ConfigError(
            f"The model {settings.model!r} is neither scripted nor scripted at a pace.",
            hint="GPTFLOW_MODEL=scripted:200 answers at 200 tokens a second.",
        )
    return ScriptedEngine(
        context=settings.slot_tokens,
        tokens_per_s=tokens_per_s,
        slots=settings.slots,
        remember=False,
    )


def _connect(settings: Settings) -> Engine:
    if settings.openai_url is None:
        raise ConfigError(
            "The engine is a model server (engine = openai), and no server is named.",
            hint="Set GPTFLOW_OPENAI_URL, such as http://127.0.0.1:8000/v1.",
        )
    _require(_REMOTE, "Asking a model server", extra="openai")
    from gptflow.engine.openai import connect
    from gptflow.engine.tokenizer import Vocabulary

    folder, key = settings.openai_tokenizer, settings.openai_api_key
    engine: Engine = connect(
        settings.openai_url,
        model=settings.openai_model,
        api_key=None if key is None else key.get_secret_value(),
        vocabulary=None if folder is None else Vocabulary.from_folder(folder),
        context=settings.openai_context,
        pooling=settings.openai_pooling,
        timeout=settings.openai_timeout,
        parallel=settings.openai_parallel,
        wait=settings.openai_wait,
    )
    return engine


def _require(packages: tuple[str, ...], what: str, *, extra: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(
                f"{what} needs the package {package!r}.", hint=f"pip install 'gptflow[{extra}]'"
            )
