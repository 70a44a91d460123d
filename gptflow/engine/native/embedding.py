"""Embeddings that take half the memory, where the model's file has them so."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom


class HalfEmbedding(torch.nn.Module):
    """In place of a `torch.nn.Embedding`: bfloat16 inside, float32 outside.

    Args:
        module: one that `is_half`; Gemma's, which multiplies what it looks up, too.
    """

    def __init__(self, module: torch.nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("weight", module.weight.detach().bfloat16())
        scale = getattr(module, "embed_scale", None)
        self._scale = None if scale is None else float(scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(ids, self.get_buffer("weight")).float()
        return rows if self._scale is None else rows * self._scale


def is_half(module: torch.nn.Module) -> bool:
    """Whether nothing is lost when the module's weights are kept as bfloat16."""
    if not isinstance(module, torch.nn.Embedding):
        return False
    weight = module.weight.detach()
    return all(torch.equal(part, part.bfloat16().float()) for part in weight.split(4096))
