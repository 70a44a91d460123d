"""LoRA: low-rank additions to a model's projections, another one for every row of a step.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Every projection of the
model has a `LoRATarget`, found by the projection's module name. Before a step the runner tells
`LoRABank.begin` which rows belong to which adapter; whoever computes the projection then calls
`target.add_(x, y)`. For torch's own modules `LoRABank.attach` does that; a module that fuses
several projections calls it once for each, on a slice of its output's columns.

The adapters that a step uses are copied into the bank's *places*, side by side per kind of
projection, so that one batched matrix product serves all of them; cf. Chen et al. 2023,
"Punica: Multi-Tenant LoRA Serving".
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from gptflow.engine.adapter_rows import AdapterRows, MaskedRows, Placed, plan

_MASKED_RANKS = 256
"""The sum of all places' ranks up to which every row goes through every adapter."""


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


class LoRATarget:
    """The additions to one projection."""

    __slots__ = ("_bank", "projection")

    def __init__(self, bank: LoRABank, projection: Projection) -> None:
        self._bank = bank
        self.projection = projection

    def add_(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to each row what its adapter adds; does nothing in a step without adapters.

        Args:
            x: what the projection was given, `[rows, fan in]`, all rows of the step.
            y: its result, `[rows, fan out]`, changed in place. It may be a slice of columns.
        """
        rows = self._bank.rows
        if rows is None:
            return
        pair = self._bank.matrices(self.projection)
        if pair is not None:
            rows.add_(x, y, *pair)


class LoRABank:
    """The adapters at work, and which rows are whose. Belongs to the engine's thread.

    Args:
        projections: of the model, see `find_projections`.
        places: most adapters in one step.
        device: where the model runs.
        dtype: of the places; by default float32 on a CPU, where batched products of small
            bfloat16 matrices are several times slower, else the model's own.
        masked: send every row through every adapter and mask, as long as they are not too
            many: see `MaskedRows`. By default on a GPU.

    Attributes:
        targets: by module name.
        rows: of the present step; None if no row has an adapter.
        generation: grows when the places move to other memory, which invalidates recorded
            CUDA graphs.
    """

    def __init__(
        self,
        projections: Mapping[str, Projection],
        *,
        places: int,
        device: torch.device,
        dtype: torch.dtype,
        masked: bool | None = None,
    ) -> None:
        self.targets = {name: LoRATarget(self, p) for name, p in projections.items()}
        self.rows: Placed | None = None
        self.generation = 0
        self._projections = projections
        self._most = places
        self._device = device
        self._masked = device.type == "cuda" if masked is None else masked
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._count = 0
        self._rank = 0
        self._places: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._stages: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._active: frozenset[str] = frozenset()
        self._hooks: list[RemovableHandle] = []

    @classmethod
    def for_model(
        cls, model: torch.nn.Module, *, places: int, masked: bool | None = None
    ) -> LoRABank:
        """A bank for a transformers model whose linear layers are still its own."""
        weight = next(model.parameters())
        projections = find_projections(model)
        return cls(
            projections, places=places, device=weight.device, dtype=weight.dtype, masked=masked
        )

    @property
    def nbytes(self) -> int:
        """What the places take."""
        return sum(a.nbytes + b.nbytes for a, b in self._stages.values())

    def attach(self, model: torch.nn.Module) -> None:
        """Have the model's own linear layers add what adapters add.

        A module that was put in place of one computes the addition itself.
        """
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | Conv1D) and name in self.targets:
                self._hooks.append(module.register_forward_hook(_hook(self.targets[name])))

    def detach(self) -> None:
        """Undo `attach`: the model is the plain one again."""
        while self._hooks:
            self._hooks.pop().remove()

    def begin(self, rows: AdapterRows[LoRAWeights] | None) -> None:
        """Say whose the rows of the next step are.

        Args:
            rows: None if no row has an adapter.
        """
        if rows is None:
            self.rows = None
            return
        used = {weights.key: weights for _, _, weights in rows.segments}
        self._prepare(used)
        self._active = frozenset(group for weights in used.values() for group in weights.groups)
        placed = AdapterRows(
            tuple((start, stop, self._places[w.key]) for start, stop, w in rows.segments)
        )
        if self._masked and self._count * self._rank <= _MASKED_RANKS:
            self.rows = MaskedRows.of(placed, rows.rows, self._count, self._rank, self._device)
            # Whoever does not add there has zeros. So all steps of a generation are alike.
            self._active = frozenset(self._stages)
        else:
            self.rows = plan(placed, self._device)

    def matrices(self, projection: Projection) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A and B of all places, `[places, rank, fan in]` and `[places, rank, fan out]`.

        None if no adapter of this step adds to the projection.
        """
        if projection.group not in self._active:
            return None
        a, b = self._stages[projection.group]
        return a[projection.index], b[projection.index]

    def forget(self, key: str) -> None:
        """Free the place of an adapter that has been unloaded."""
        self._places.pop(key, None)

    def _prepare(self, used: Mapping[str, LoRAWeights]) -> None:
        """Give every adapter of a step a place."""
        for key in used.keys() & self._places.keys():
            self._places.move_to_end(key)
        self._grow(len(used), max(weights.rank for weights in used.values()))
        for key, weights in used.items():
            if key not in self._places:
                place = self._take()
                self._places[key] = place
                self._fill(place, weights)

    def _take(self) -> int:
        taken = set(self._places.values())
        free = next((place for place in range(self._count) if place not in taken), None)
        if free is not None:
            return free
        # Those in use were moved to the end, and there are enough places for all.
        return self._places.popitem(last=False)[1]

    def _grow(self, places: int, rank: int) -> None:
        """Make room for so many adapters of such a rank."""
        if places <= self._count and rank <= self._rank:
            return
        if places > self._count:
            self._count = max(places, min(2 * self._count, self._most))
        self._rank = max(rank, self._rank)
        self.generation += 1
        for group, old in tuple(self._stages.items()):
            a, b = self._stages[group] = self._stage(old[0], old[1])
            for new, part in zip((a, b), old, strict=True):
                new[:, : part.shape[1], : part.shape[2]] = part

    def _fill(self, place: int, weights: LoRAWeights) -> None:
        """Copy an adapter's matrices to its place, and zeros where it has none."""
        for group, (a, b) in weights.groups.items():
            if group not in self._stages:
                self._stages[group] = self._stage(a, b)
                self.generation += 1
        for group, stages in self._stages.items():
            for stage in stages:
                stage[:, place].zero_()
            if group in weights.groups:
                for stage, part in zip(stages, weights.groups[group], strict=True):
                    stage[:, place, : part.shape[1]] = part

    def _stage(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Empty places for matrices as long and as wide as these."""
        like: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        shape = (a.shape[0], self._count, self._rank)
        return torch.zeros(*shape, a.shape[-1], **like), torch.zeros(*shape, b.shape[-1], **like)


def segments(weights: Rows[tuple[int, LoRAWeights | None]]) -> AdapterRows[LoRAWeights] | None:
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


def _hook(target: LoRATarget) -> Any:
    def add(_: torch.nn.Module, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
        x = given[0]
        target.add_(x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1]))

    return add
