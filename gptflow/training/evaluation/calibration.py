"""Calibration: whether 80 % means 80 %.

One temperature for all labels, fitted on the development split (Guo et al. 2017), and the
expected calibration error over bins of equal width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptflow.training.evaluation.answers import Indices

Floats = NDArray[np.float64]

BINS = 15
_TINY = 1e-12
_COLDEST, _HOTTEST = 0.02, 50.0
_GOLDEN = (5**0.5 - 1) / 2


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
    """Answers of about one confidence.

    Attributes:
        confidence: their mean probability; NaN where the bin is empty.
        accuracy: the share that is right; NaN where the bin is empty.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float

    def as_dict(self) -> dict[str, Any]:
        return {
            name: None if value != value else value
            for name, value in dataclasses.asdict(self).items()
        }


def rescale(probs: Floats, temperature: float) -> Floats:
    """The softmax of the logits over `temperature`; log-probabilities do for logits."""
    logits = np.log(np.maximum(probs, _TINY)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    scaled: Floats = odds / odds.sum(axis=1, keepdims=True)
    return scaled


def negative_log_likelihood(probs: Floats, gold: Indices) -> float:
    """Mean, in nats."""
    return float(-np.log(np.maximum(probs[np.arange(len(gold)), gold], _TINY)).mean())


def fit_temperature(probs: Floats, gold: Indices) -> float:
    """The temperature that makes the right labels most likely.

    The loss is convex in the temperature's inverse, so a golden-section search finds its minimum.

    Args:
        probs: `[rows, labels]` of the development split.
        gold: `[rows]`, the right columns.
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(rescale(probs, float(np.exp(log_temperature))), gold)

    low, high = float(np.log(_COLDEST)), float(np.log(_HOTTEST))
    while high - low > 1e-4:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def reliability(probs: Floats, gold: Indices, bins: int = BINS) -> tuple[Bin, ...]:
    """The most probable labels by how probable they are, in `bins` of equal width."""
    confidence = probs.max(axis=1)
    right = probs.argmax(axis=1) == gold
    place = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    return tuple(
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            count=int((inside := place == number).sum()),
            confidence=float(confidence[inside].mean()) if inside.any() else float("nan"),
            accuracy=float(right[inside].mean()) if inside.any() else float("nan"),
        )
        for number in range(bins)
    )


def expected_error(bins: tuple[Bin, ...]) -> float:
    """The mean distance of confidence and accuracy, by the number of answers in each bin."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins if each.count) / (
        total or 1
    )
