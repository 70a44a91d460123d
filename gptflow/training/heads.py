"""Heads in training: linear maps of hidden states, and which states they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gptflow.engine.adapters import LinearHead
from gptflow.heads import Pooling


class TrainedHeads(nn.Module):
    """Linear layers by name, begun at zero: at first every answer is as likely as any other.

    Args:
        rows: of each one's weight.
        width: of the hidden states.
    """

    def __init__(self, rows: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.names = tuple(rows)
        self.layers = nn.ModuleList(nn.Linear(width, count) for count in rows.values())
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def __getitem__(self, name: str) -> nn.Linear:
        layer = self.layers[self.names.index(name)]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return {f"head.{name}": parameter for name, parameter in self.named_parameters()}

    def served(self) -> dict[str, LinearHead]:
        """The heads as the engine has them."""
        return {
            name: LinearHead(
                weight=self[name].weight.detach().float().cpu().clone(),
                bias=self[name].bias.detach().float().cpu().clone(),
            )
            for name in self.names
        }


def pool(hidden: torch.Tensor, lengths: Sequence[int], pooling: Pooling) -> torch.Tensor:
    """One vector per text, as the engine makes it.

    Args:
        hidden: `[texts, longest, width]`.

    Returns:
        `[texts, width]`.
    """
    ends = torch.tensor(lengths, device=hidden.device)
    if pooling == "last":
        return hidden[torch.arange(len(lengths), device=hidden.device), ends - 1]
    inside = torch.arange(hidden.shape[1], device=hidden.device) < ends[:, None]
    return (hidden * inside[..., None]).sum(1) / ends[:, None]
