"""Reading logits with the kernels: one pass for the peak and its place, one for the sum."""

from __future__ import annotations

import torch

from gptflow.engine.native.library import Library
from gptflow.engine.summary import Summary


def compiled_summary(library: Library, logits: torch.Tensor) -> Summary:
    """Of `[rows, vocabulary]` in float32, whose rows may lie further apart than they are wide."""
    rows, width = logits.shape
    assert logits.stride(1) == 1
    summary = Summary(torch.empty(rows), torch.empty(rows, dtype=torch.long), torch.empty(rows))
    library.summarize(
        logits.data_ptr(),
        rows,
        width,
        logits.stride(0),
        summary.peaks.data_ptr(),
        summary.tokens.data_ptr(),
        summary.normalizers.data_ptr(),
    )
    return summary
