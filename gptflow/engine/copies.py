"""Copies from this process's memory to a device's, without waiting for the device."""

from __future__ import annotations

import torch


def upload(values: object, device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Numbers or a tensor, on the device.

    A GPU copies from page-locked memory in the order of its work, and nobody waits.

    Args:
        dtype: of the numbers; a tensor keeps its own.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=dtype)
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor in page-locked memory if the device is a GPU.

    torch does not use that memory for anything else until copies from it are done.
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor
