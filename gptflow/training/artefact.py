"""Artefact: what was trained, as a folder that workers serve, and the proof that it is the same.

The folder is written aside, loaded by the engine itself and asked what the trainer was asked. Only
if the answers are the same does it become an adapter of the store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from gptflow import __version__
from gptflow.adapter import BaseModelRef, Data, HeadSpec, Manifest, Metric
from gptflow.adapter_info import HEAD_WEIGHTS, LORA_CONFIG, LORA_WEIGHTS, MANIFEST
from gptflow.engine.engine import TorchEngine
from gptflow.engine.loader import no_progress_bar
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import AdapterNotSaved, GPTFlowError, ReloadDiffers
from gptflow.heads import Raw
from gptflow.models import Model, ModelStore, files
from gptflow.models.adapter_store import AdapterStore, AdapterVersion
from gptflow.request import ModelInfo
from gptflow.training.backbone import Backbone
from gptflow.training.card import model_card
from gptflow.training.example import Example
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.objective import Objective
from gptflow.training.runs import RunRecord
from gptflow.training.served_floors import ServedFloor

METRICS = "metrics.json"
CARD = "README.md"

ASKED = 64
"""Examples whose answers are compared."""

TOLERANCE = 1e-3
"""Of a logit, a score or a hidden state's number, beside a thousandth of it."""


def save(
    store: AdapterStore,
    record: RunRecord,
    backbone: Backbone,
    heads: TrainedHeads,
    vocabulary: Vocabulary,
    objective: Objective[Any],
    *,
    specs: Mapping[str, HeadSpec],
    metrics: Mapping[str, Metric],
    details: Mapping[str, Any],
    examples: Sequence[Example],
    outputs: Sequence[Any],
    base: BaseModelRef | None = None,
    inherited: Sequence[Data] = (),
    floors: Mapping[str, ServedFloor] | None = None,
) -> AdapterVersion:
    """Write an adapter into the store. The backbone is spent afterwards.

    Args:
        details: more for `metrics.json`: reports, history.
        examples: of the development split; `outputs` are what the trainer made of them.
        base: the model that it goes with, where that is not the one that the run began with.
        inherited: data that the adapter was trained on before this run.
        floors: the simple models that answer in place of heads.

    Raises:
        ReloadDiffers: the engine answers otherwise than the trainer did; nothing is kept.
        AdapterNotSaved: the disk is full, or the folder cannot be written; nothing is kept.
    """
    base = base or BaseModelRef(id=record.model, sha256=(record.model_sha256,))
    with store.build(record.adapter) as draft:
        folder = draft.folder
        try:
            storage = getattr(torch, record.settings.storage)
            _write_weights(folder, backbone, heads, storage)
        except SafetensorError as error:  # how it reports a full disk
            raise AdapterNotSaved(f"{folder} cannot be written: {error}.") from None
        for name, floor in (floors or {}).items():
            floor.write(folder, name)
        manifest = _manifest(record, objective, base, specs, metrics, inherited).model_copy(
            update={"floors": {name: floor.spec for name, floor in (floors or {}).items()}}
        )
        contents = {"metrics": {n: m.model_dump() for n, m in metrics.items()}, **details}
        (folder / METRICS).write_text(
            json.dumps(contents, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / CARD).write_text(model_card(manifest, record), encoding="utf-8")
        files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        manifest = manifest.model_copy(update={"files": files})
        # Through the parser: what is written is what can be read.
        manifest = Manifest.parse(manifest.to_json(), name=record.adapter)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        pairs = list(zip(examples, outputs, strict=True))[:ASKED]
        check_reload(folder, manifest, record.adapter, backbone, vocabulary, objective, pairs)
    assert draft.version is not None
    return draft.version


def save_model(folder: Path, backbone: Backbone, origin: Path) -> Model:
    """Write a model all of whose weights were trained, as `gptflow models pull FOLDER` takes it.

    Args:
        origin: the folder of the model that it was before, for its tokenizer.

    Raises:
        AdapterNotSaved: the disk is full, or the folder cannot be written; nothing is kept.
    """
    return write_model(folder, backbone.model, origin)


def write_model(folder: Path, model: Any, origin: Path) -> Model:
    """Write a model of transformers beside another one's tokenizer; see `save_model`."""
    partial = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with no_progress_bar():
            model.save_pretrained(partial)
        for path in origin.iterdir():
            known = files.is_allowed(path.name) and not files.is_weights(path.name)
            if known and not (partial / path.name).exists() and path.name != files.INDEX:
                shutil.copyfile(path, partial / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AdapterNotSaved(
            f"The model cannot be written to {folder}: {error}.", hint="Make room."
        ) from None
    return ModelStore(folder.parent, offline=True).find(str(folder))


def check_reload(
    folder: Path,
    manifest: Manifest,
    alias: str,
    backbone: Backbone,
    vocabulary: Vocabulary,
    objective: Objective[Any],
    pairs: Sequence[tuple[Example, Any]],
) -> None:
    """Load an adapter with the engine that workers have, and ask it what the trainer was asked.

    Raises:
        ReloadDiffers: it cannot be loaded, or its answers are others.
    """
    expected = [objective.expected(example, out, manifest.heads) for example, out in pairs]
    context = max((len(text) for example, _ in pairs for text in example.texts), default=1) + 1
    engine = TorchEngine(
        backbone.plain_model(),
        vocabulary,
        ModelInfo(id=manifest.base.id, sha256=manifest.base.sha256[0], context=context),
        slots=4,
        slot_tokens=context,
        prefix_bytes=1 << 20,
    )
    try:
        engine.load_adapter(alias, folder)
        futures: list[Future[Raw]] = [
            engine.submit(objective.asked(example)) for example, _ in pairs
        ]
        for (example, _), numbers, future in zip(pairs, expected, futures, strict=True):
            found = objective.found(future.result())
            if not _close(numbers, found):
                raise ReloadDiffers(
                    f"The saved adapter answers otherwise than the trained one on row "
                    f"{example.row} of the development split: {_first(numbers, found)}.",
                    hint="This is a fault of GPTFlow or of the model's architecture; please "
                    "report it.",
                )
    except ReloadDiffers:
        raise
    except GPTFlowError as error:
        raise ReloadDiffers(f"The saved adapter cannot be served: {error}") from error
    finally:
        engine.close()


def _write_weights(
    folder: Path, backbone: Backbone, heads: TrainedHeads, storage: torch.dtype
) -> None:
    if backbone.has_lora:
        config, tensors = backbone.lora_state()
        (folder / LORA_CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        kept = {name: tensor.to(storage) for name, tensor in tensors.items()}
        safetensors.torch.save_file(kept, folder / LORA_WEIGHTS, metadata={"format": "pt"})
    if heads.names:
        weights: dict[str, torch.Tensor] = {}
        for name, head in heads.served().items():
            weights[f"{name}.weight"] = head.weight.to(storage)
            weights[f"{name}.bias"] = head.bias.to(storage)
        safetensors.torch.save_file(weights, folder / HEAD_WEIGHTS, metadata={"format": "pt"})


def _manifest(
    record: RunRecord,
    objective: Objective[Any],
    base: BaseModelRef,
    specs: Mapping[str, HeadSpec],
    metrics: Mapping[str, Metric],
    inherited: Sequence[Data],
) -> Manifest:
    files_of = Counter(file.split for file in record.data)
    return Manifest.model_construct(
        task=record.task,
        version=record.id,
        base=base,
        heads=dict(specs),
        pooling=record.settings.pooling,
        lora_rank=record.settings.rank if record.settings.method == "lora" else None,
        data=tuple(inherited)
        + tuple(
            Data(
                name=file.name,
                sha256=file.sha256,
                licence=file.licence,
                split=file.split,
                rows=record.rows.get(file.split, 0) if files_of[file.split] == 1 else 0,
            )
            for file in record.data
        ),
        prompt=objective.prompt,
        metrics=dict(metrics),
        primary=record.primary,
        gates=dict(record.gates),
        code=f"gptflow {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files={},
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(
        abs(x - y) <= TOLERANCE * (1 + abs(x)) for x, y in zip(a, b, strict=True)
    )


def _first(a: Sequence[float], b: Sequence[float]) -> str:
    if len(a) != len(b):
        return f"{len(b)} numbers in place of {len(a)}"
    gap = max(zip(a, b, strict=True), key=lambda pair: abs(pair[0] - pair[1]))
    return f"{gap[1]:.5f} in place of {gap[0]:.5f}"
