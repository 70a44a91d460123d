"""Bootstrap: how far a figure may be off because the test rows are those and not others.

Percentile intervals over rows drawn with repetition (Efron and Tibshirani 1993); two models are
compared on the same draws, so that rows which are hard for both cancel out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from gptflow.training.evaluation.answers import Answers, Indices, require_same

RESAMPLES = 1000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A figure over all rows, and the bounds of its interval. All NaN where undefined."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model's figure minus another's, on the same rows.

    Attributes:
        p: one-sided: the share of draws in which the first is not better. No difference at all
            gives 1.
    """

    metric: str
    first: float
    second: float
    difference: Interval
    p: float

    @property
    def better(self) -> bool:
        """Whether the whole interval is above nothing."""
        return self.difference.low > 0

    @property
    def worse(self) -> bool:
        """Whether the whole interval is below nothing."""
        return self.difference.high < 0


def intervals(
    answers: Answers, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Mapping[str, Interval]:
    """Every figure with its interval."""
    values = answers.metrics()
    draws = [answers.metrics(indices) for indices in _draws(len(answers), resamples, seed)]
    return {
        name: Interval(value, *_bounds([draw[name] for draw in draws], level))
        for name, value in values.items()
    }


def compare(
    first: Answers,
    second: Answers,
    metric: str | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """The paired bootstrap of two models' answers to the same rows in the same order.

    Args:
        metric: by default the first's `primary`.

    Raises:
        ValueError: they answer different numbers of rows.
    """
    require_same(len(first), {"the other": second})
    name = metric or first.primary
    one, two = first.metrics()[name], second.metrics()[name]
    gaps = np.array(
        [
            first.metrics(indices)[name] - second.metrics(indices)[name]
            for indices in _draws(len(first), resamples, seed)
        ]
    )
    return Comparison(
        metric=name,
        first=one,
        second=two,
        difference=Interval(one - two, *_bounds(list(gaps), level)),
        p=float((gaps <= 0).mean()),
    )


def _draws(count: int, resamples: int, seed: int) -> Iterator[Indices]:
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(0, count, size=count)


def _bounds(values: list[float], level: float) -> tuple[float, float]:
    # A draw may miss all rows that a figure is about.
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(known, (tail, 1 - tail))
    return float(low), float(high)
