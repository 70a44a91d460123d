"""LoRA's matrices, the projections that they add to, and whose the rows of a step are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Generic, TypeVar

import torch
from transformers.pytorch_utils import Conv1D

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer that adapters may add to.

    Attributes:
        group: what it has in common with its likes in other layers: name and shape.
        index: its number among them.
    """

    name: str
    group: str
    index: int
    fan_in: int
    fan_out: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """One adapter's matrices.

    Attributes:
        key: SHA-256 of the files that they come from. Equal keys mean equal weights.
        rank: the largest one.
        groups: per group of projections, A as `[projections, rank, fan in]` and B, transposed
            and scaled, as `[projections, rank, fan out]`; zero where there is no addition.
    """

    key: str
    rank: int
    groups: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.groups.values())


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterRows(Generic[T]):
    """Whose the rows of a step are; rows that are in no segment have no adapter.

    Attributes:
        segments: `(start, stop, adapter)`, ascending.
        rows: of the whole step.
    """

    segments: tuple[tuple[int, int, T], ...]
    rows: int = 0


def find_projections(model: torch.nn.Module) -> dict[str, Projection]:
    """The projections of a transformers model by module name; its output layer is not one."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    found: dict[str, Projection] = {}
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            fan_in, fan_out = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            fan_in, fan_out = module.weight.shape
        else:
            continue
        group = f"{re.sub(r'[0-9]+', '*', name)} {fan_in} {fan_out}"
        index = sizes.get(group, 0)
        sizes[group] = index + 1
        found[name] = Projection(name, group, index, fan_in, fan_out)
    return found


def rows_by_adapter(
    weights: Rows[tuple[int, LoRAWeights | None]],
) -> AdapterRows[LoRAWeights] | None:
    """Whose rows are whose.

    Args:
        weights: in the order of the rows, how many belong together and to which adapter.
    """
    found: list[tuple[int, int, LoRAWeights]] = []
    at = 0
    for count, of in weights:
        if of is not None:
            if found and found[-1][1] == at and found[-1][2].key == of.key:
                found[-1] = (found[-1][0], at + count, of)
            else:
                found.append((at, at + count, of))
        at += count
    return AdapterRows(tuple(found), rows=at) if found else None
