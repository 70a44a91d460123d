"""Surges of negatives: is this bucket out of season, in volume and in share?

Three legs look at one series of negatives y and posts n in consecutive buckets:

- *volume*: P(Y >= y) under a negative binomial fitted to the same season of earlier weeks;
- *share*: P(Y >= y) of the bucket's n posts under a beta-binomial of the same windows, which
  cancels a plain rise in volume;
- *build-up*: a one-sided CUSUM (Page 1954) of the standardised residuals.

The baseline is the same hour of the week, one bucket to either side, over up to eight weeks; with
less than four weeks of history the same hour of every day. Windows under an earlier alert are left
out, the highest tenth is trimmed, and a guard band keeps a slow onset out of its own baseline
(as in EARS C2, Hutwagner et al. 2003). Where fewer than five negatives are expected, the window
is widened from one bucket to six hours and to a day, and the next wider one is looked at too;
windows slide bucket by bucket.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import ClassVar, Literal, TypeVar

from gptflow.monitoring.tails import (
    beta_binomial_tail,
    negative_binomial_interval,
    negative_binomial_tail,
)

HOUR, DAY, WEEK = 3600, 86_400, 604_800
WARM_UP = 2 * WEEK
"""Seconds; less history than this says nothing about what is usual."""

FEWEST_WINDOWS = 7
"""Fewer baseline windows than these say nothing about spread."""

BEYOND_DOUBT = 100
"""Evidence that is this many times below alpha fires alone among as many series."""

Leg = Literal["volume_and_share", "volume", "build_up"]
Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a bucket fires.

    Attributes:
        alpha: the level of the volume and share legs; `calibration.calibrate` finds it.
        cusum_limit: what the CUSUM must exceed, in standard deviations.
        slack: what each bucket takes off the CUSUM.
        minimum: fewest negatives in the window.
        ratio: least multiple of the expected negatives.
        cooldown: buckets after the last one that fired in which no new alert opens.
        guard: windows before the current one that are not part of its baseline.
        expected: the window is widened until this many negatives are expected in it.
    """

    alpha: float = 1e-4
    cusum_limit: float = 10.0
    slack: float = 0.5
    minimum: int = 10
    ratio: float = 2.0
    cooldown: int = 24
    guard: int = 2
    expected: float = 5.0


class Counts:
    """Negatives and posts in consecutive buckets of one series, oldest first.

    Args:
        bucket: its length in seconds.
    """

    def __init__(self, negative: Sequence[int], total: Sequence[int], *, bucket: int = HOUR):
        if len(negative) != len(total):
            raise ValueError(f"{len(negative)} buckets of negatives, {len(total)} of posts")
        self.bucket = bucket
        self._negative = [0, *accumulate(negative)]
        self._total = [0, *accumulate(total)]
        self._excluded = bytearray(len(negative))

    def __len__(self) -> int:
        return len(self._excluded)

    def head(self, length: int) -> Counts:
        """The first buckets alone, with what is kept out of their baselines."""
        part = Counts((), (), bucket=self.bucket)
        part._negative = self._negative[: length + 1]
        part._total = self._total[: length + 1]
        part._excluded = self._excluded[:length]
        return part

    def window(self, end: int, width: int) -> tuple[int, int]:
        """Negatives and posts of the `width` buckets before bucket `end`."""
        start = end - width
        return (
            self._negative[end] - self._negative[start],
            self._total[end] - self._total[start],
        )

    def exclude(self, start: int, end: int) -> None:
        """Keep buckets `start:end` out of every baseline from now on."""
        start, end = max(start, 0), min(end, len(self))
        if start < end:
            self._excluded[start:end] = b"\x01" * (end - start)

    def is_clean(self, end: int, width: int) -> bool:
        return 1 not in self._excluded[end - width : end]

    @property
    def widths(self) -> tuple[int, ...]:
        """The window lengths to try, in buckets: one, six hours, a day."""
        return tuple(sorted({max(1, span // self.bucket) for span in (0, 6 * HOUR, DAY)}))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a window usually holds.

    Attributes:
        mean: of the negatives.
        dispersion: variance over mean of the negatives, at least 1.
        share: of negatives among the posts.
        correlation: between two posts of the same window.
        windows: how many earlier windows this is from.
    """

    mean: float
    dispersion: float
    share: float
    correlation: float
    windows: int

    @property
    def widening(self) -> float:
        """What the error of the mean itself adds to the variance."""
        return 1 + 1 / self.windows

    @property
    def variance(self) -> float:
        return self.mean * self.dispersion * self.widening

    @property
    def interval(self) -> tuple[int, int]:
        """The negatives that 95 of 100 such windows hold."""
        return negative_binomial_interval(self.mean, self.variance)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One window held against its baseline. `end` is the number of the bucket after it."""

    end: int
    width: int
    negative: int
    total: int
    baseline: Baseline

    @property
    def is_whole(self) -> bool:
        """Whether it is one of the windows that tile the series without overlap."""
        return self.end % self.width == 0

    @property
    def ratio(self) -> float:
        """Observed over expected negatives; an expectation below one half counts as that."""
        return self.negative / max(self.baseline.mean, 0.5)

    @property
    def z(self) -> float:
        """Standard deviations above the expectation."""
        return (self.negative - self.baseline.mean) / math.sqrt(self.baseline.variance)

    @property
    def p_volume(self) -> float:
        return negative_binomial_tail(self.negative, self.baseline.mean, self.baseline.variance)

    @property
    def p_share(self) -> float:
        return beta_binomial_tail(
            self.negative, self.total, self.baseline.share, self.baseline.correlation
        )


@dataclasses.dataclass(slots=True)
class Spread:
    """How far a series strays from its baselines, pooled over the hours of about two weeks.

    One baseline's few windows say little about spread; a quiet hour's may show none at all.

    Attributes:
        dispersion: variance over mean of the negatives, at least 1 in use.
        correlation: between two posts of the same window.
        readings: how many this is from, up to the length of the memory.
    """

    MEMORY: ClassVar[int] = 336

    dispersion: float = 1.0
    correlation: float = 0.0
    readings: int = 0

    def learn(self, reading: Reading) -> None:
        """Take in a reading that did not fire; of overlapping windows, one."""
        if not reading.is_whole:
            return
        baseline, n = reading.baseline, reading.total
        self.readings = min(self.readings + 1, self.MEMORY)
        residual = (reading.negative - baseline.mean) ** 2 / (baseline.mean * baseline.widening)
        self.dispersion += (residual - self.dispersion) / self.readings
        if n > 1:
            spread = n * baseline.share * (1 - baseline.share)
            excess = (reading.negative - n * baseline.share) ** 2 / spread - 1
            self.correlation += (excess / (n - 1) - self.correlation) / self.readings


def read(counts: Counts, end: int, rule: Rule, spreads: dict[int, Spread]) -> list[Reading]:
    """Hold the windows that end before bucket `end` against their season.

    Args:
        spreads: what was learnt so far, by width.

    Returns:
        The narrowest window in which enough negatives are expected, and the next wider one,
        which sees what the first is too short to tell from noise. None of them where there is
        too little history; less than two weeks always is.
    """
    if end * counts.bucket < WARM_UP:
        return []
    readings: list[Reading] = []
    for width in counts.widths:
        spread = spreads.setdefault(width, Spread())
        baseline = fit_baseline(counts, end, width, rule.guard, spread)
        if baseline is None:
            continue
        negative, total = counts.window(end, width)
        reading = Reading(end=end, width=width, negative=negative, total=total, baseline=baseline)
        if readings and readings[-1].baseline.mean >= rule.expected:
            return [readings[-1], reading]
        readings.append(reading)
    return readings[-1:]


def fit_baseline(
    counts: Counts, end: int, width: int, guard: int, spread: Spread
) -> Baseline | None:
    """Fit the windows of the same season before bucket `end`; None where they are too few."""
    windows = sorted(
        counts.window(end - lag, width)
        for lag in _lags(counts.bucket, end, width, guard)
        if counts.is_clean(end - lag, width)
    )
    windows = windows[: len(windows) - len(windows) // 10]
    k = len(windows)
    if k < FEWEST_WINDOWS:
        return None
    negatives, posts = sum(y for y, _ in windows), sum(n for _, n in windows)
    mean = max(negatives, 0.5) / k
    dispersion = sum((y - mean) ** 2 for y, _ in windows) / (k - 1) / mean
    share = (negatives + 0.5) / (posts + 1)
    return Baseline(
        mean=mean,
        dispersion=max(1.0, dispersion, spread.dispersion),
        share=share,
        correlation=max(_correlation(windows, share), min(spread.correlation, 0.9)),
        windows=k,
    )


def _lags(bucket: int, end: int, width: int, guard: int) -> list[int]:
    """How many buckets back the windows of the same season lie."""
    day, week = max(1, DAY // bucket), max(1, WEEK // bucket)
    neighbour = 1 if width == 1 else day
    if end - width >= 4 * week + neighbour:
        period, repeats = week, 8
    else:
        period, repeats = day, 28
    lags = {k * period + side for k in range(1, repeats + 1) for side in (-neighbour, 0, neighbour)}
    return [lag for lag in lags if width * (1 + guard) <= lag <= end - width]


def _correlation(windows: Sequence[tuple[int, int]], share: float) -> float:
    """Williams's (1982) moment estimate of a beta-binomial's intra-class correlation."""
    spread = share * (1 - share)
    pearson = sum((y - n * share) ** 2 / (n * spread) for y, n in windows if n)
    used = sum(1 for _, n in windows if n)
    pairs = sum(n - 1 for _, n in windows if n)
    return min(0.9, max(0.0, (pearson - (used - 1)) / pairs)) if pairs > 0 else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What the three legs say of one window."""

    reading: Reading
    p_volume: float
    p_share: float
    cusum: float

    @property
    def p(self) -> float:
        """Below alpha when both p-values are, or when `p_volume` is below alpha squared."""
        return min(max(self.p_volume, self.p_share), math.sqrt(self.p_volume))


def weigh(readings: Sequence[Reading], cusum: float, rule: Rule) -> Evidence | None:
    """The strongest evidence in a bucket's windows; the narrowest that is beyond doubt.

    Returns:
        None where there are too few negatives for an alert, or not many more than usual.
    """
    found = [
        Evidence(reading, reading.p_volume, reading.p_share, cusum)
        for reading in readings
        if reading.negative >= rule.minimum and reading.ratio >= rule.ratio
    ]
    sure = [evidence for evidence in found if evidence.p <= rule.alpha / BEYOND_DOUBT]
    return sure[0] if sure else min(found, key=lambda evidence: evidence.p, default=None)


def firing(evidence: Mapping[Key, Evidence], watched: int, rule: Rule) -> dict[Key, Leg]:
    """Which series fire in one bucket, and by which leg.

    Levels are those of Benjamini and Hochberg (1995) over all `watched` series of the bucket,
    so that watching many topics does not multiply the false alarms.
    """
    level = 0.0
    for rank, p in enumerate(sorted(each.p for each in evidence.values()), start=1):
        if p <= rule.alpha * rank / watched:
            level = rule.alpha * rank / watched
    legs: dict[Key, Leg] = {}
    for key, each in evidence.items():
        if max(each.p_volume, each.p_share) <= level:
            legs[key] = "volume_and_share"
        elif each.p <= level:
            legs[key] = "volume"
        elif each.cusum > rule.cusum_limit:
            legs[key] = "build_up"
    return legs


def next_cusum(cusum: float, reading: Reading, rule: Rule) -> float:
    """The CUSUM after a reading; it moves once per whole window, so that none counts twice."""
    if not reading.is_whole:
        return cusum
    return max(0.0, cusum + reading.z - rule.slack)
