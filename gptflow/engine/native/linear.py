"""Linear layers over integers, from the weights of a model's own."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers.pytorch_utils import Conv1D

from gptflow.engine.native.library import Library, Linear, address

_BLOCK = 64
"""Numbers of one row that share a scale; as in linear.h."""


class Format(enum.IntEnum):
    """How numbers are kept; see formats.h and grid.h for what each is good for."""

    INT8 = 1
    INT16 = 2
    GRID = 3


class Target(Protocol):
    """What may be added to a projection's output."""

    def add_(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add in place to `y`, `[rows, outputs]`, what belongs to `x`, `[rows, inputs]`."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Weights as the kernels read them.

    Attributes:
        structure: for the C side; it points into the tensors below.
    """

    structure: Linear
    numbers: torch.Tensor
    bias: torch.Tensor | None

    @property
    def outputs(self) -> int:
        return int(self.structure.outputs)


def pack(
    library: Library,
    modules: Sequence[torch.nn.Module],
    numbers: Format,
    *,
    gated: bool = False,
) -> Packed:
    """Quantise linear layers of one input, side by side.

    Weights and inputs are cut into blocks of 64 numbers along the input, each with a scale of
    its own, like "Q8_0" of llama.cpp with its 32. Weights to be INT16 that came from a file with
    4 bits each are recognised, and become GRID: faster, a third of the size, and as exact.

    Args:
        modules: `torch.nn.Linear` or `Conv1D`.
        gated: there are two, the gates and what they open, without bias.
    """
    weights = [_weight(module) for module in modules]
    inputs = weights[0].shape[1]
    outputs = sum(weight.shape[0] for weight in weights)
    if gated:
        weight, second = weights
        bias = None
    else:
        weight, second = torch.cat(weights) if len(weights) > 1 else weights[0], None
        bias = _bias(modules, weights)
    if numbers is Format.INT16 and all(
        library.on_grid(w.data_ptr(), *w.shape) for w in ([weight] if second is None else weights)
    ):
        numbers = Format.GRID
    size = library.packed_size(len(weight), inputs, int(gated), numbers)
    packed = torch.empty(size, dtype=torch.uint8)
    library.pack(
        weight.data_ptr(),
        None if second is None else second.data_ptr(),
        len(weight),
        inputs,
        numbers,
        packed.data_ptr(),
    )
    structure = Linear(
        outputs=outputs,
        inputs=-(-inputs // _BLOCK) * _BLOCK,
        packed=packed.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        gated=int(gated),
        format=numbers,
    )
    return Packed(structure, packed, bias)


class QuantizedLinear(torch.nn.Module):
    """In place of a `torch.nn.Linear` or `Conv1D`: integers inside, float32 outside."""

    def __init__(
        self,
        library: Library,
        module: torch.nn.Module,
        numbers: Format,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        self._library = library
        self._packed = pack(library, [module], numbers)
        self._target = target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = multiply(self._library, self._packed, rows)
        if self._target is not None:
            self._target.add_(rows, y)
        return y.view(*x.shape[:-1], -1)


def multiply(library: Library, packed: Packed, x: torch.Tensor) -> torch.Tensor:
    """`x`, `[rows, inputs]` of float32, through the layer: `[rows, outputs]`."""
    y = torch.empty(x.shape[0], packed.outputs)
    library.linear(address(packed.structure), x.data_ptr(), x.shape[0], x.shape[1], y.data_ptr())
    return y


def is_linear(module: torch.nn.Module) -> bool:
    """Whether `pack` takes it."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    """`[outputs, inputs]` in float32."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return (weight.T if isinstance(module, Conv1D) else weight).detach().float().contiguous()


def _bias(
    modules: Sequence[torch.nn.Module], weights: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    parts = []
    for module, weight in zip(modules, weights, strict=True):
        bias = module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        parts.append(torch.zeros(len(weight)) if bias is None else bias.detach().float())
    return torch.cat(parts)
