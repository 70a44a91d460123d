"""Calibration: thresholds that keep the false alarms of past weeks within a budget.

Nominal levels cannot be trusted: counts scatter more than any fitted distribution says. So the
history is replayed as if nothing in it had been worth an alert, and the loosest thresholds are
taken under which no more alerts than the budget would have opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from gptflow.monitoring.surge import (
    WARM_UP,
    WEEK,
    Counts,
    Evidence,
    Rule,
    firing,
    next_cusum,
    read,
    weigh,
)
from gptflow.monitoring.tracking import Track

BUDGET = 0.02
"""False alarms per series and week: one in fifty."""

ALPHAS = tuple(10.0 ** (-step / 2) for step in range(5, 25))
CUSUM_LIMITS = (8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)
MARGIN = 10.0
"""How much stricter than the strictest window seen, where the replay is too short to tell."""

Key = TypeVar("Key", bound=Hashable)

Bucket = tuple[int, int, Mapping[Any, Evidence]]
"""The bucket's number, how many series were watched in it, and the candidates among them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds found by replay.

    Attributes:
        series_weeks: how much history they are from.
        alarms: how many alerts they would have raised in it.
    """

    rule: Rule
    series_weeks: float
    alarms: int


def calibrate(
    panels: Sequence[Mapping[Key, Counts]],
    rule: Rule,
    *,
    weeks: int = 4,
    budget: float = BUDGET,
) -> Calibration | None:
    """Find `alpha` and `cusum_limit` by replaying the last `weeks` weeks of each panel.

    Args:
        panels: groups of aligned series that are watched together.
        budget: false alarms per series and week.

    Returns:
        None where there is less than four weeks to replay.
    """
    replays = []
    series_weeks = 0.0
    for panel in panels:
        length = min(len(counts) for counts in panel.values())
        bucket = next(iter(panel.values())).bucket
        first = length - weeks * WEEK // bucket
        if first * bucket < WARM_UP:
            continue
        replays.append(_replay(panel, first, length, rule))
        series_weeks += weeks * len(panel)
    if not replays:
        return None
    allowed = budget * series_weeks

    def alarms(trial: Rule) -> int:
        return sum(_count(replay, trial) for replay in replays)

    quiet = dataclasses.replace(rule, alpha=0.0)
    limit = next(
        (
            limit
            for limit in CUSUM_LIMITS
            if alarms(dataclasses.replace(quiet, cusum_limit=limit)) <= allowed / 2
        ),
        float("inf"),
    )
    found = dataclasses.replace(quiet, cusum_limit=limit)
    for alpha in ALPHAS:
        trial = dataclasses.replace(rule, cusum_limit=limit, alpha=alpha)
        if alarms(trial) <= allowed:
            found = trial
            break
    if allowed < 1:
        found = dataclasses.replace(found, alpha=found.alpha / MARGIN)
    return Calibration(rule=found, series_weeks=series_weeks, alarms=alarms(found))


def _replay(panel: Mapping[Key, Counts], first: int, stop: int, rule: Rule) -> list[Bucket]:
    """The candidates of each bucket from `first` on; spreads are learnt from all before too."""
    tracks = {key: Track() for key in panel}
    buckets: list[Bucket] = []
    for end in range(1, stop + 1):
        watched, evidence = 0, {}
        for key, counts in panel.items():
            track = tracks[key]
            readings = read(counts, end, rule, track.spreads)
            if not readings:
                continue
            watched += 1
            track.cusum = next_cusum(track.cusum, readings[0], rule)
            for reading in readings:
                track.spreads[reading.width].learn(reading)
            if end > first and (found := weigh(readings, track.cusum, rule)) is not None:
                evidence[key] = found
        if evidence:
            buckets.append((end, watched, evidence))
    return buckets


def _count(buckets: Iterable[Bucket], rule: Rule) -> int:
    """How many alerts open under `rule`, cool-down included."""
    fired: dict[Any, int] = {}
    alarms = 0
    for end, watched, evidence in buckets:
        for key in firing(evidence, watched, rule):
            if key not in fired or end - fired[key] > rule.cooldown:
                alarms += 1
            fired[key] = end
    return alarms
