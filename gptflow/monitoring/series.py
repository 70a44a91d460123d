"""Series: counts of posts in buckets of event time, per topic and per entity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from gptflow.monitoring.surge import Counts

ALL = "*"
"""Stands for every topic."""


class Key(NamedTuple):
    """Which series: a topic, or an entity over all topics, or everything."""

    topic: str = ALL
    entity: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One bucket of one series.

    Attributes:
        raw: posts, repeats included; the others count each story once.
    """

    raw: int = 0
    total: int = 0
    negative: int = 0
    positive: int = 0

    def __add__(self, other: Point) -> Point:
        return Point(
            raw=self.raw + other.raw,
            total=self.total + other.total,
            negative=self.negative + other.negative,
            positive=self.positive + other.positive,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What is counted of one post."""

    topic: str
    label: str
    p_negative: float
    entities: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The series that the post is part of."""
        return (Key(), Key(self.topic), *(Key(entity=entity) for entity in self.entities))

    @property
    def point(self) -> Point:
        return Point(
            raw=1,
            total=1,
            negative=int(self.label == "negative"),
            positive=int(self.label == "positive"),
        )


def floor(ts: float, bucket: int) -> int:
    """The start of the bucket that a time is in."""
    return math.floor(ts / bucket) * bucket


def wilson(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's (1927) interval for a share, sound for small counts too."""
    if total == 0:
        return 0.0, 1.0
    share, square = count / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    return max(0.0, centre - half), min(1.0, centre + half)


def counts(points: Mapping[int, Point], *, start: int, stop: int, bucket: int) -> Counts:
    """The series from `start` up to `stop`, both starts of buckets; buckets without posts are 0."""
    filled = [points.get(at, Point()) for at in range(start, stop, bucket)]
    return Counts(
        [point.negative for point in filled], [point.total for point in filled], bucket=bucket
    )
