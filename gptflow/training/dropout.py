"""Dropout that costs a CPU little.

PyTorch draws one number after another on a CPU: with LoRA on seven layers of a block that was 28 %
of a training step. Here each element costs one byte of a fast generator.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class ByteDropout(nn.Module):
    """Dropout by bytes: the probability is one of 256 steps, and 0 where it is below half a step.

    What it draws follows PyTorch's generator, so `torch.manual_seed` repeats it.

    Args:
        probability: of an element to become zero; what is left is scaled up.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self._dropped = min(round(256 * probability), 255)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states` with elements left out; as they are while not training."""
        if not self.training or not self._dropped:
            return states
        share = self._dropped / 256
        if states.device.type != "cpu":
            return nn.functional.dropout(states, share)
        seed = int(torch.randint(2**62, (1,)))
        words = np.random.SFC64(seed).random_raw(-(-states.numel() // 8))
        drawn = torch.from_numpy(words.view(np.uint8)[: states.numel()]).view(states.shape)
        kept = (drawn >= self._dropped).to(states.dtype).mul_(1 / (1 - share))
        return states * kept
