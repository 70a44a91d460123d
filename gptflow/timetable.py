"""Timetables: when a schedule fires. Every moment here is aware and in UTC.

A timetable has no state: two processes that ask for the same moment get the same answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from gptflow.cron import Cron

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_MINUTE = timedelta(minutes=1)
_NEAR = timedelta(hours=25)
"""No two changes of a zone's clock are so close, and none moves it by more than a day."""


class Timetable(Protocol):
    """The moments at which a schedule fires."""

    def next(self, after: datetime) -> datetime:
        """The first moment later than `after`. Raises `OverflowError` beyond the year 9999."""
        ...


def moments(times: Timetable, after: datetime) -> Iterator[datetime]:
    """All moments later than `after`, in their order."""
    while True:
        after = times.next(after)
        yield after


def latest(times: Timetable, after: datetime, until: datetime) -> datetime | None:
    """The last moment that is later than `after` and not later than `until`."""
    found, span = None, _MINUTE
    while found is None and after < until:
        start = max(after, until - span)
        first = times.next(start)
        found = first if first <= until else None
        if start == after:
            break
        span *= 4
    while found is not None and (later := times.next(found)) <= until:
        found = later
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """A fixed pace, counted from the beginning of 1970 in UTC."""

    interval: timedelta

    def next(self, after: datetime) -> datetime:
        return EPOCH + ((after - EPOCH) // self.interval + 1) * self.interval


@dataclasses.dataclass(frozen=True, slots=True)
class CronTimes:
    """A cron expression on the wall clocks of a time zone.

    A time of day that the clocks leave out in spring fires once, as much later as they are put
    forward; one that they show twice in autumn fires the first time. An expression for every
    hour means a pace, and keeps it through both.
    """

    cron: Cron
    zone: tzinfo

    def next(self, after: datetime) -> datetime:
        wall = self._wall(after)
        first = self.cron.next(wall)
        near = (after - _NEAR, after, after + _NEAR, *self._around(first))
        offsets = [self._offset(moment) for moment in near]
        shift = max(offsets) - min(offsets)
        if not shift:
            return self._read(first, fold=0)
        # Wall clocks run back and leap here: of the candidates the earliest is next.
        best: datetime | None = None
        candidate = self.cron.next(wall - shift - _MINUTE)
        while best is None or candidate.replace(tzinfo=UTC) - max(offsets) < best:
            found = [moment for moment in self._moments(candidate) if moment > after]
            best = min(found if best is None else [best, *found], default=None)
            candidate = self.cron.next(candidate)
        return best

    def _around(self, wall: datetime) -> tuple[datetime, datetime]:
        moment = self._read(wall, fold=0)
        return moment - _NEAR, moment + _NEAR

    def _moments(self, wall: datetime) -> Iterator[datetime]:
        """The moments at which the clocks show a time, as far as it fires then."""
        yield self._read(wall, fold=0)
        if self.cron.hourly and self._wall(again := self._read(wall, fold=1)) == wall:
            yield again

    def _read(self, wall: datetime, *, fold: int) -> datetime:
        return wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC)

    def _wall(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset
