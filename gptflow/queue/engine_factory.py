"""Loads the engine that the settings name. Found by name, so that callers never import torch."""

from __future__ import annotations

import importlib.util
import logging

from gptflow.config import Settings
from gptflow.errors import MissingDependency
from gptflow.request import Engine

logger = logging.getLogger(__name__)

_RUNTIME = ("torch", "transformers", "safetensors", "llguidance")

SCRIPTED = "scripted"
"""`GPTFLOW_MODEL=scripted` serves canned answers: for testing a queue without a model."""


def load_engine(settings: Settings) -> Engine:
    """Load the settings' model, pulling it first where it is missing.

    Raises:
        MissingDependency: torch or transformers is not installed.
        ModelError: the model is not to be had, or is not one that the engine serves.
    """
    if settings.model == SCRIPTED:
        from gptflow.testing import ScriptedEngine

        logger.warning("There is no model: every answer is scripted (GPTFLOW_MODEL=scripted).")
        return ScriptedEngine()
    for package in _RUNTIME:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(
                f"Running a model needs the package {package!r}.",
                hint="pip install 'gptflow[runtime]'",
            )
    from gptflow.models import ModelStore

    model = ModelStore(
        settings.cache_dir, offline=settings.offline, accepted=settings.accept_licences
    ).ensure(settings.model)
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
        model_id=model.name,
        sha256=model.sha256,
    )
    return engine
