"""Thresholds that fit a budget of false alarms."""

import random

from gptflow.monitoring.calibration import calibrate
from gptflow.monitoring.surge import Counts, Rule

WEEK = 168


def noisy(weeks: int, seed: int, *, burst: int = 0) -> Counts:
    rng = random.Random(seed)
    negative = [rng.randrange(8, 13) for _ in range(weeks * WEEK)]
    if burst:
        for start in range(0, len(negative), burst):
            negative[start] += 40
    return Counts(negative, [y + 20 for y in negative])


def test_too_little_history_keeps_the_rule() -> None:
    assert calibrate([{"a": noisy(5, 1)}], Rule()) is None
    assert calibrate([{"a": noisy(6, 1)}], Rule()) is not None


def test_a_quiet_past_allows_loose_thresholds() -> None:
    found = calibrate([{"a": noisy(7, 1), "b": noisy(7, 2)}], Rule())
    assert found is not None
    assert found.alarms == 0
    assert found.series_weeks == 8


def test_a_past_full_of_bursts_asks_for_strict_ones() -> None:
    calm = calibrate([{"a": noisy(7, 1)}], Rule())
    wild = calibrate([{"a": noisy(7, 1, burst=31)}], Rule())
    assert calm is not None
    assert wild is not None
    assert wild.rule.alpha < calm.rule.alpha
    assert wild.alarms == 0


def test_a_larger_budget_allows_looser_thresholds() -> None:
    series = {"a": noisy(7, 1, burst=31)}
    strict, loose = calibrate([series], Rule()), calibrate([series], Rule(), budget=6.0)
    assert strict is not None
    assert loose is not None
    assert loose.rule.alpha > strict.rule.alpha
