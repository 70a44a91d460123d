"""Counting by bounds."""

from __future__ import annotations

from gptflow.histogram import Histogram


def test_a_measurement_counts_below_the_first_bound_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.2, 1.0, 7.0):
        histogram.add(value)
    assert histogram.as_dict() == {"bounds": [0.1, 1.0], "counts": [2, 2, 1], "sum": 8.35}
