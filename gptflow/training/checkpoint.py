"""Checkpoints: everything that a run needs to go on as if it had never stopped.

One safetensors file, no pickle: weights, the best weights so far and AdamW's moments as tensors,
the rest as JSON in the header. It is replaced whole: a kill leaves the old one or the new one. What
a step draws depends on the seed and the step's number alone, so no state of a generator is kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gptflow.errors import ModelCorrupt, ResumeRefused, TrainingError
from gptflow.models.files import check_safetensors

FILE = "checkpoint.safetensors"

Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: updates so far.
        best: the best figure of the development split, None before the first evaluation.
        best_step: after which step it was measured.
        worse: evaluations since then.
        tokens: that were trained on, padding not counted.
        seconds: of training, over all sittings.
        history: one record per evaluation.
        stopped: by early stopping.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    stopped: bool = False


@dataclasses.dataclass(slots=True)
class Checkpoint:
    """A run between two steps."""

    progress: Progress
    weights: Weights
    best: Weights
    moments: Weights


def save(
    folder: Path,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    best: Weights,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a run's checkpoint.

    Raises:
        TrainingError: the disk is full; the last checkpoint is still there.
    """
    tensors: Weights = {f"weight/{n}": p.detach().cpu() for n, p in parameters.items()}
    tensors |= {f"best/{n}": t for n, t in best.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"moment/{key}/{name}"] = value.detach().cpu()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    partial = folder / f".{FILE}"
    try:
        safetensors.torch.save_file(
            tensors, partial, metadata={"progress": json.dumps(dataclasses.asdict(progress))}
        )
        handle = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, folder / FILE)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"The checkpoint in {folder} cannot be written: {error}.",
            hint=f"Make room, then `gptflow train --resume {folder.name}`.",
        ) from None


def load(folder: Path) -> Checkpoint | None:
    """A run's checkpoint; None where it has none yet.

    Raises:
        ResumeRefused: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    parts: dict[str, Weights] = {"weight": {}, "best": {}, "moment": {}}
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            for key in file.keys():  # noqa: SIM118  it is no mapping
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
    except (ModelCorrupt, SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ResumeRefused(
            f"{path} is damaged: {error}.", hint="Begin the training anew."
        ) from None
    return Checkpoint(progress, parts["weight"], parts["best"], parts["moment"])


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and moments back where they were.

    Raises:
        ResumeRefused: they are those of another model or other settings.
    """
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if shapes != {name: tensor.shape for name, tensor in checkpoint.weights.items()}:
        raise ResumeRefused("The checkpoint is of another model, or of other settings.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.weights[name])
    for key, tensor in checkpoint.moments.items():
        kind, _, name = key.partition("/")
        # AdamW counts its steps on the CPU.
        where = "cpu" if kind == "step" else parameters[name].device
        optimizer.state[parameters[name]][kind] = tensor.to(where)
