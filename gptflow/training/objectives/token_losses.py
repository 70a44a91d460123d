"""Losses of tokens: how unlikely the output layer finds each one, without all logits at once."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from gptflow.training.backbone import Backbone

_ROWS = 256
"""Of logits at a time: as wide as the vocabulary, they would not fit into memory together."""


def token_losses(backbone: Backbone, states: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Negative log-probabilities in nats, `[tokens]`.

    Args:
        states: `[tokens, width]`, the hidden states that tokens are predicted from.
        gold: `[tokens]`, these tokens.
    """
    losses = [states.new_zeros(0)]
    for part, wanted in zip(states.split(_ROWS), gold.split(_ROWS), strict=True):
        # Logits are computed again on the way back, so that only one part's are ever held.
        loss = partial(_cross_entropy, backbone)
        losses.append(
            checkpoint(loss, part, wanted, use_reentrant=False)
            if torch.is_grad_enabled()
            else loss(part, wanted)
        )
    return torch.cat(losses)


def _cross_entropy(backbone: Backbone, states: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(backbone.logits(states), gold, reduction="none")
