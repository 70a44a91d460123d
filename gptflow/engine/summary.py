"""Summary: what is read off every row of logits, whoever samples from it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Summary(NamedTuple):
    """Of each row.

    Attributes:
        peaks: the largest logit, `[rows]`.
        tokens: where it is; of equal ones the first.
        normalizers: the logarithm of the sum of their exponentials. Not a finite number if a
            logit is not a number or is infinite.
    """

    peaks: torch.Tensor
    tokens: torch.Tensor
    normalizers: torch.Tensor


def summarize(logits: torch.Tensor) -> Summary:
    """Of `[rows, vocabulary]`, with torch's own operators."""
    peaks, tokens = logits.max(dim=-1)
    return Summary(peaks, tokens, torch.logsumexp(logits, dim=-1))
