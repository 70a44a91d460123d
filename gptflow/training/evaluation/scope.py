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


def neighbourhood(
    vectors: NDArray[np.float64], known: NDArray[np.float64], k: int = 5
) -> NDArray[np.float64]:
    """The mean cosine with the `k` nearest training rows: more for a text in scope.

    Args:
        vectors: `[rows, width]`, embeddings of what is asked.
        known: `[training rows, width]`; of fewer than `k`, all are taken.

    Returns:
        `[rows]`.
    """
    ours, theirs = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12)
        for each in (vectors, known)
    )
    cosines = ours @ theirs.T
    nearest = min(k, len(known))
    top = np.partition(cosines, len(known) - nearest, axis=1)[:, -nearest:]
    mean: NDArray[np.float64] = top.mean(axis=1)
    return mean


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
