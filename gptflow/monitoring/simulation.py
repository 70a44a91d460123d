"""Simulation: how often the detector cries wolf, and how soon it sees one.

Hourly counts with a day and a week in them, negative-binomial scatter, and a known surge. The
detector is calibrated on quiet series first, as a monitor is on its own past, and printed beside
two others: a flat z > 3 over the last week, and a dummy that always fires.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptflow.monitoring.calibration import calibrate
from gptflow.monitoring.surge import Counts, Rule
from gptflow.monitoring.tracking import Panel

WEEK = 168
"""Hours."""

SHARE = 0.3
"""Of negatives among the posts of a quiet hour."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting of the simulation.

    Attributes:
        base: negatives in a mean hour.
        phi: variance over mean of the counts.
        surge: what the negatives are multiplied with, 1 for none.
        hours: how long the surge lasts.
    """

    base: float
    phi: float
    surge: float = 1.0
    hours: int = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a detector did on a cell.

    Attributes:
        false_alarms: per series and week, outside the surges.
        recall: share of the surges that raised an alert; None where there are none.
        delay: median hours from the start of a surge to its alert; 1 is the surge's first hour.
    """

    detector: str
    cell: Cell
    false_alarms: float
    recall: float | None
    delay: float | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


Detector = Callable[[Sequence[int], Sequence[int], int], list[int]]
"""Negatives, posts and the first hour to judge; gives the hours after which alerts open."""


def grid(
    bases: Sequence[float] = (3, 10, 40),
    phis: Sequence[float] = (1, 3),
    surges: Sequence[float] = (1, 2, 3, 5),
    hours: Sequence[int] = (3, 6, 12),
) -> list[Cell]:
    """All combinations; the quiet ones once."""
    cells = {
        Cell(base=base, phi=phi, surge=surge, hours=length if surge > 1 else 6): None
        for base in bases
        for phi in phis
        for surge in surges
        for length in hours
    }
    return list(cells)


def simulate(cells: Sequence[Cell], *, series: int = 20, seed: int = 0) -> Iterator[Score]:
    """Run every detector on every cell.

    Args:
        series: per cell; each is judged for two weeks after eight of history.
    """
    rules: dict[tuple[float, float], Rule] = {}
    for cell in cells:
        noise = (cell.base, cell.phi)
        if noise not in rules:
            rules[noise] = calibrated(*noise, series=series, seed=seed)
        rng = random.Random(f"{seed}/{cell}")  # noqa: S311  not for secrets
        runs = [_draw(cell, 10 * WEEK, rng) for _ in range(series)]
        detectors: dict[str, Detector] = {
            "gptflow": functools.partial(detect, rule=rules[noise]),
            "flat z>3": flat,
            "always": always,
        }
        for name, detector in detectors.items():
            yield _score(name, detector, cell, runs)


def calibrated(base: float, phi: float, *, series: int = 20, seed: int = 0) -> Rule:
    """The rule that a monitor of so many quiet series would find."""
    rng = random.Random(f"{seed}/{base}/{phi}")  # noqa: S311  not for secrets
    panels = []
    for _ in range(series):
        negative, total, _ = _draw(Cell(base=base, phi=phi), 10 * WEEK, rng)
        panels.append({0: Counts(negative, total)})
    found = calibrate(panels, Rule())
    assert found is not None
    return found.rule


def detect(negative: Sequence[int], total: Sequence[int], first: int, rule: Rule) -> list[int]:
    """The hours after which the detector opens an alert."""
    panel = Panel({0: Counts(negative, total)}, {}, rule)
    opened = []
    for end in range(4 * WEEK, len(negative) + 1):
        changes = [signal.change for signal in panel.step(end)]
        if "opened" in changes and end > first:
            opened.append(end)
    return opened


def flat(negative: Sequence[int], total: Sequence[int], first: int) -> list[int]:
    """Three standard deviations above the mean of the last week, season or no season."""
    opened: list[int] = []
    for hour in range(first, len(negative)):
        past = negative[hour - WEEK : hour]
        limit = statistics.fmean(past) + 3 * statistics.pstdev(past)
        if negative[hour] >= 10 and negative[hour] > limit:
            _open(opened, hour + 1)
    return opened


def always(negative: Sequence[int], total: Sequence[int], first: int) -> list[int]:
    """An alert whenever the cool-down allows one."""
    opened: list[int] = []
    for hour in range(first, len(negative)):
        _open(opened, hour + 1)
    return opened


def _open(opened: list[int], end: int) -> None:
    if not opened or end - opened[-1] > Rule().cooldown:
        opened.append(end)


Run = tuple[list[int], list[int], int]
"""Negatives, posts, and the hour in which the surge begins."""


def _draw(cell: Cell, hours: int, rng: random.Random) -> Run:
    start = hours - WEEK + rng.randrange(WEEK - cell.hours - 12)
    negative, total = [], []
    for hour in range(hours):
        day = 1 + 0.6 * math.sin(2 * math.pi * (hour % 24 - 9) / 24)
        mean = cell.base * day * (0.6 if hour // 24 % 7 >= 5 else 1.16)
        factor = cell.surge if start <= hour < start + cell.hours else 1.0
        negative.append(_scattered(mean * factor, cell.phi, rng))
        total.append(negative[-1] + _scattered(mean * (1 / SHARE - 1), cell.phi, rng))
    return negative, total, start


def _scattered(mean: float, phi: float, rng: random.Random) -> int:
    """Negative binomial: a Poisson whose mean is drawn from a gamma."""
    return _poisson(mean if phi <= 1 else rng.gammavariate(mean / (phi - 1), phi - 1), rng)


def _poisson(mean: float, rng: random.Random) -> int:
    """Count how many exponential waits fit in the mean."""
    count, waited = -1, 0.0
    while waited <= mean:
        waited += rng.expovariate(1.0)
        count += 1
    return count


def _score(name: str, detector: Detector, cell: Cell, runs: Sequence[Run]) -> Score:
    first = 8 * WEEK
    false, delays = 0, []
    for negative, total, start in runs:
        opened = detector(negative, total, first)
        until = start + cell.hours + 6 if cell.surge > 1 else start
        hits = [end - start for end in opened if start < end <= until]
        false += len(opened) - len(hits)
        delays += hits[:1]
    quiet = cell.surge <= 1
    return Score(
        detector=name,
        cell=cell,
        false_alarms=false / (len(runs) * 2),
        recall=None if quiet else len(delays) / len(runs),
        delay=statistics.median(delays) if delays else None,
    )
