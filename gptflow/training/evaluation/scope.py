"""Scope: the threshold below which a text is taken to be about none of the labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import EmptyData

KEEP = 0.9


def energy(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """T * logsumexp(logits / T): more for a text in scope (Liu et al. 2020, without the sign).

    Args:
        logits: `[rows, labels]`.

    Returns:
        `[rows]`.
    """
    scaled = logits / temperature
    top = scaled.max(axis=1)
    scores: NDArray[np.float64] = temperature * (
        top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    )
    return scores


def choose_threshold(scores: NDArray[np.float64], keep: float = KEEP) -> float:
    """The highest threshold that at least this share of the scores reaches.

    Args:
        scores: of rows of the development split that are in scope.

    Raises:
        EmptyData: there are none.
    """
    if not len(scores):
        raise EmptyData(
            "No row of the development split is in scope.", hint="Give it rows of every label."
        )
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    dropped = int(np.floor((1 - keep) * len(ordered) + 1e-9))
    return float(ordered[min(dropped, len(ordered) - 1)])
