"""Putting the kernels in place of a model's own layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gptflow.engine.native.embedding import HalfEmbedding, is_half
from gptflow.engine.native.layer import CompiledLayer, is_known
from gptflow.engine.native.library import Library
from gptflow.engine.native.linear import Format, QuantizedLinear, Target, is_linear


def quantize(
    model: Any,
    library: Library,
    numbers: Format,
    targets: Mapping[str, Target] | None = None,
) -> None:
    """Replace a transformers model's linear layers by integer ones, and free the weights.

    Decoder layers of known architectures are replaced whole. Embeddings that are bfloat16 in the
    model's file are so in memory; what remains is kept in float32.

    Args:
        targets: what adapters add to projections, by module name.
    """
    targets = targets or {}
    for name, layer in _find(model, is_known):
        own = {
            target.removeprefix(f"{name}."): targets[target]
            for target in targets
            if target.startswith(f"{name}.")
        }
        _replace(model, name, CompiledLayer(library, layer, numbers, own))
    for name, module in _find(model, is_linear):
        _replace(model, name, QuantizedLinear(library, module, numbers, targets.get(name)))
    model.float()
    for name, module in _find(model, is_half):
        _replace(model, name, HalfEmbedding(module))


def _find(model: Any, wanted: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if wanted(module)]


def _replace(model: Any, name: str, module: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())
