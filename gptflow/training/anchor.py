"""Anchor: elastic weight consolidation, springs that hold what earlier training relies on.

Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks": the loss has a
term of half of lambda times the sum of F (w - w0)^2, where w0 are the weights that training goes on
from and F, the diagonal of the Fisher information, says how much the answers to old rows depend on
each weight. F is the mean over old rows of the squared gradient of their loss (the empirical
Fisher: of the labels that the rows have). The old rows are those of the reservoir, which is of all
stages, so one anchor stands for all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gptflow.errors import ModelCorrupt, ResumeRefused, TrainingError
from gptflow.models.files import check_safetensors
from gptflow.training.example import Example

FILE = "fisher.safetensors"

ROWS = 512
"""Examples that the Fisher information is measured on."""

Weights = Mapping[str, torch.Tensor]
Backward = Callable[[Sequence[Example]], None]
"""Adds the gradients of the examples' loss to the parameters'."""


class Anchor:
    """Pulls parameters back to where they were.

    Args:
        fisher: by parameter, as large as it; a parameter that is not among them is free.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], fisher: Weights, *, strength: float
    ) -> None:
        self._strength = strength
        self._held = [
            (parameters[name], parameters[name].detach().clone(), found.to(parameters[name].device))
            for name, found in fisher.items()
        ]

    @torch.no_grad()
    def pull(self) -> float:
        """Add the springs' gradients to the parameters'.

        Returns:
            Their part of the loss.
        """
        total = 0.0
        for parameter, origin, fisher in self._held:
            gap = parameter - origin
            pull = self._strength * fisher * gap
            total += 0.5 * float((pull * gap).sum())
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
        return total


def measure(
    parameters: Mapping[str, nn.Parameter], examples: Sequence[Example], backward: Backward
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information, by parameter.

    Args:
        examples: at most `ROWS` of them are looked at, evenly spread.
    """
    chosen = [example for example in examples[:: -(-len(examples) // ROWS) or 1] if example.weight]
    fisher = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for example in chosen:
        for parameter in parameters.values():
            parameter.grad = None
        backward([example])
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                fisher[name] += parameter.grad.square() / len(chosen)
    for parameter in parameters.values():
        parameter.grad = None
    return fisher


def save(folder: Path, fisher: Weights, *, key: str) -> None:
    """Keep it in a run's folder.

    Args:
        key: what it was measured with; see `load`.

    Raises:
        TrainingError: the disk is full.
    """
    partial = folder / f".{FILE}"
    try:
        tensors = {name: found.detach().cpu().contiguous() for name, found in fisher.items()}
        safetensors.torch.save_file(tensors, partial, metadata={"key": _digest(key)})
        partial.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"{folder / FILE} cannot be written: {error}.",
            hint=f"Make room, then `gptflow train --resume {folder.name}`.",
        ) from None


def load(folder: Path, parameters: Mapping[str, nn.Parameter], *, key: str) -> Weights | None:
    """What `save` kept; None where there is nothing, or it was measured with something else.

    Raises:
        ResumeRefused: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != _digest(key):
                return None
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (ModelCorrupt, SafetensorError, OSError) as error:
        raise ResumeRefused(
            f"{path} is damaged: {error}.", hint="Delete it; it is measured again."
        ) from None
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if any(shapes.get(name) != tensor.shape for name, tensor in found.items()):
        return None
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
