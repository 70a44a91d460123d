"""LoRA: low-rank additions to a model's projections, another one for every row of a step.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Every projection of the
model has a `LoRATarget`, found by the projection's module name. Before a step the runner tells
`LoRABank.begin` which rows belong to which adapter; whoever computes the projection then calls
`target.add_(x, y)`. For torch's own modules `LoRABank.attach` does that; a module that fuses
several projections calls it once for each, on a slice of its output's columns.

On a CPU the compiled kernels read each adapter's matrices where they lie. Torch's operators
need them side by side (`places`), so that one batched product serves all of them; cf. Chen et
al. 2023, "Punica: Multi-Tenant LoRA Serving".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from gptflow.engine.lora_weights import AdapterRows, LoRAWeights, Projection, find_projections
from gptflow.engine.native.adapt import MAX_RANK, CompiledRows
from gptflow.engine.native.library import Library
from gptflow.engine.places import Places, StagedRows


class StepRows(Protocol):
    """The rows of one step that have adapters."""

    def add_(self, projection: Projection, x: torch.Tensor, y: torch.Tensor) -> None:
        """See `LoRATarget.add_`."""
        ...


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
        if rows is not None:
            rows.add_(self.projection, x, y)


class LoRABank:
    """The adapters at work, and which rows are whose. Belongs to the engine's thread.

    Args:
        projections: of the model, see `find_projections`.
        places: most adapters in one step.
        dtype: of the model.
        library: the compiled kernels; they are for models that compute in float32.
        half: keep matrices in half precision, as goes with integer layers.
        masked: send every row through every adapter and mask, as long as they are not too
            many: see `MaskedRows`. By default on a GPU.

    Attributes:
        targets: by module name.
        rows: of the present step; None if no row has an adapter.
        kept_in: what adapters' matrices are kept in.
        device: and where.
    """

    def __init__(
        self,
        projections: Mapping[str, Projection],
        *,
        places: int,
        device: torch.device,
        dtype: torch.dtype,
        library: Library | None = None,
        half: bool = False,
        masked: bool | None = None,
    ) -> None:
        self.targets = {name: LoRATarget(self, p) for name, p in projections.items()}
        self.rows: StepRows | None = None
        self.kept_in = torch.float16 if half else dtype
        self.device = device
        # Batched products of small bfloat16 matrices are several times slower on a CPU.
        staged = torch.float32 if device.type == "cpu" else dtype
        masked = device.type == "cuda" if masked is None else masked
        self._places = Places(most=places, device=device, dtype=staged, masked=masked)
        self._library = library if dtype == torch.float32 and not masked else None
        self._hooks: list[RemovableHandle] = []

    @classmethod
    def for_model(
        cls,
        model: torch.nn.Module,
        *,
        places: int,
        library: Library | None = None,
        half: bool = False,
        masked: bool | None = None,
    ) -> LoRABank:
        """A bank for a transformers model whose linear layers are still its own."""
        weight = next(model.parameters())
        return cls(
            find_projections(model),
            places=places,
            device=weight.device,
            dtype=weight.dtype,
            library=library,
            half=half,
            masked=masked,
        )

    @property
    def nbytes(self) -> int:
        """What it holds beside the adapters themselves."""
        return self._places.nbytes

    def limit(self, adapter_bytes: int) -> int:
        """Bound what it holds beside adapters that may take so many bytes.

        Returns:
            The bound. Where kernels read the matrices in their places, only adapters of ranks
            that these do not serve are stacked.
        """
        bound = adapter_bytes // (8 if self._library is not None else 2)
        self._places.limit = bound
        return bound

    @property
    def generation(self) -> int:
        """Grows when the stacked matrices move, which invalidates recorded CUDA graphs."""
        return self._places.generation

    @property
    def mask(self) -> torch.Tensor | None:
        """Whose adapter adds to which row of this step; None if rows are not masked."""
        return self.rows.mask if isinstance(self.rows, StagedRows) else None

    @mask.setter
    def mask(self, mask: torch.Tensor) -> None:
        self.rows = self._places.masked_by(mask)

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
        elif self._library is not None and max(w.rank for _, _, w in rows.segments) <= MAX_RANK:
            self.rows = CompiledRows(self._library, rows)
        else:
            self.rows = self._places.stage(rows)

    def forget(self, key: str) -> None:
        """Let go of an adapter that has been unloaded."""
        self._places.forget(key)


def _hook(target: LoRATarget) -> Any:
    def add(_: torch.nn.Module, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
        x = given[0]
        target.add_(x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1]))

    return add
