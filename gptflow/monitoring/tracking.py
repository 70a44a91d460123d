"""Tracks: from windows that fire to alerts that open, escalate and resolve."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, Literal, TypeVar

from gptflow.monitoring.surge import (
    WEEK,
    Counts,
    Evidence,
    Leg,
    Reading,
    Rule,
    Spread,
    firing,
    next_cusum,
    read,
    weigh,
)

Change = Literal["opened", "escalated", "resolved"]
Level = Literal["warning", "critical"]
Key = TypeVar("Key", bound=Hashable)

NEW_NORMAL = WEEK
"""Seconds after which a level that stays up counts as the series' own."""


@dataclasses.dataclass(slots=True)
class Track:
    """Where one series stands between two buckets. Numbers are of buckets; None means never.

    Attributes:
        opened: when the open alert opened; None when none is open.
        fired: the last bucket that fired.
        width: of that bucket's window.
        level: of the open alert.
        spreads: by width of window.
    """

    cusum: float = 0.0
    opened: int | None = None
    fired: int | None = None
    width: int = 1
    level: Level = "warning"
    spreads: dict[int, Spread] = dataclasses.field(default_factory=dict)

    def step(self, end: int, fired: Reading | None, rule: Rule) -> Change | None:
        """Take one bucket's verdict: the window that fires, if one does.

        An alert opens as a warning, is critical when it still fires a whole window later, and
        is resolved by a whole window in which nothing fires.
        """
        if fired is not None:
            cooling = self.fired is not None and end - self.fired <= rule.cooldown
            self.fired, self.width = end, fired.width
            if self.opened is None:
                if cooling:
                    return None
                self.opened, self.level = end, "warning"
                return "opened"
            if self.level == "warning" and end - self.opened >= fired.width:
                self.level = "critical"
                return "escalated"
        elif self.opened is not None and self.fired is not None and end - self.fired >= self.width:
            self.opened, self.cusum = None, 0.0
            return "resolved"
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Generic[Key]):
    """A change of one series' alert, and what brought it about; `leg` is None for the end."""

    key: Key
    change: Change
    reading: Reading
    evidence: Evidence | None
    leg: Leg | None


class Panel(Generic[Key]):
    """Series that are watched together, bucket by bucket.

    Args:
        series: of equal length, aligned.
        tracks: where each one stands; changed in place. A series without one starts afresh.
    """

    def __init__(self, series: Mapping[Key, Counts], tracks: dict[Key, Track], rule: Rule) -> None:
        self._series = series
        self.tracks = tracks
        self._rule = rule

    def step(self, end: int) -> list[Signal[Key]]:
        """Judge the windows that end before bucket `end`."""
        watched: dict[Key, list[Reading]] = {}
        evidence: dict[Key, Evidence] = {}
        for key, counts in self._series.items():
            track = self.tracks.setdefault(key, Track())
            readings = read(counts, end, self._rule, track.spreads)
            if not readings:
                continue
            watched[key] = readings
            track.cusum = next_cusum(track.cusum, readings[0], self._rule)
            if (found := weigh(readings, track.cusum, self._rule)) is not None:
                evidence[key] = found
        legs = firing(evidence, len(watched), self._rule)
        return [
            signal
            for key, readings in watched.items()
            if (signal := self._verdict(key, end, readings, evidence.get(key), legs.get(key)))
        ]

    def _verdict(
        self,
        key: Key,
        end: int,
        readings: Sequence[Reading],
        evidence: Evidence | None,
        leg: Leg | None,
    ) -> Signal[Key] | None:
        track = self.tracks[key]
        fired = None if leg is None or evidence is None else evidence.reading
        change = track.step(end, fired, self._rule)
        if fired is None:
            for reading in readings:
                track.spreads[reading.width].learn(reading)
        else:
            self._keep_out(key, fired)
        if change is None:
            return None
        return Signal(
            key=key, change=change, reading=fired or readings[0], evidence=evidence, leg=leg
        )

    def _keep_out(self, key: Key, fired: Reading) -> None:
        """Keep what fired out of later baselines, until it has lasted so long that it is normal."""
        counts, opened = self._series[key], self.tracks[key].opened
        since = fired.end if opened is None else opened
        if (fired.end - since) * counts.bucket < NEW_NORMAL:
            counts.exclude(fired.end - fired.width, fired.end)
