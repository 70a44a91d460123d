"""Cron expressions: five fields, and the minutes of a wall clock that they name.

As in Celery, a day must fit both its fields: `0 9 13 * fri` is every Friday the 13th.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Self

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MINUTES_OF_A_DAY = 24 * 60


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    names: Sequence[str] = ()
    sunday: bool = False


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _WEEKDAYS, sunday=True),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Cron:
    """What an expression names.

    Attributes:
        times: minutes of the day, in their order.
        weekdays: 0 is Sunday.
        hourly: whether it names all hours, so that it means a pace and not a time of day.
    """

    times: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    hourly: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression such as `*/15 8-17 * * mon-fri`.

        Raises:
            ValueError: which part of it is wrong, and how.
        """
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError(f"it has {len(parts)} fields, not {len(_FIELDS)}")
        minutes, hours, days, months, weekdays = map(_expand, parts, _FIELDS)
        if not any(day <= _MONTH_DAYS[month - 1] for month in months for day in days):
            raise ValueError(
                f"none of its months ({parts[3]}) has a day {parts[2]}, so it would never fire"
            )
        return cls(
            times=tuple(60 * hour + minute for hour in sorted(hours) for minute in sorted(minutes)),
            days=days,
            months=months,
            weekdays=weekdays,
            hourly=len(hours) == 24,
        )

    def next(self, after: datetime) -> datetime:
        """The first minute later than `after`, on the same wall clock.

        Raises:
            OverflowError: it is beyond the year 9999.
        """
        day = after.date()
        if self._names(day):
            passed = bisect.bisect_right(self.times, 60 * after.hour + after.minute)
            if passed < len(self.times):
                return self._at(day, self.times[passed])
        day += timedelta(days=1)
        while not self._names(day):
            day = _first_of_next_month(day) if day.month not in self.months else _tomorrow(day)
        return self._at(day, self.times[0])

    def _names(self, day: date) -> bool:
        return (
            day.month in self.months
            and day.day in self.days
            and day.isoweekday() % 7 in self.weekdays
        )

    @staticmethod
    def _at(day: date, minutes: int) -> datetime:
        return datetime(day.year, day.month, day.day, *divmod(minutes, 60))


def _tomorrow(day: date) -> date:
    return day + timedelta(days=1)


def _first_of_next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _expand(text: str, field: _Field) -> frozenset[int]:
    return functools.reduce(frozenset.union, (_values(part, field) for part in text.split(",")))


def _values(part: str, field: _Field) -> frozenset[int]:
    """The values of one part between commas: `*`, `7`, `1-5`, `fri-mon`, `*/5`, `8-18/2`."""
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        raise ValueError(f"the step of {part!r} ({field.name}) is not a number above 0")
    if span == "*":
        values = list(range(field.least, field.most + 1))
    else:
        start, dash, end = span.partition("-")
        if slash and not dash:
            raise ValueError(
                f"a step needs a range before it: {part!r} ({field.name}) could be "
                f"'{start}-{field.most}/{step}'"
            )
        first, last = _value(start, field), _value(end if dash else start, field)
        values = _around(first, last, field)
    values = values[:: int(step or 1)]
    # Sunday is 7, too.
    return frozenset(value % 7 for value in values) if field.sunday else frozenset(values)


def _around(first: int, last: int, field: _Field) -> list[int]:
    """A range, which may lead over the end of the field: `22-2`, `fri-mon`."""
    if first <= last:
        return list(range(first, last + 1))
    return [*range(first, field.most + 1), *range(field.least, last + 1)]


def _value(text: str, field: _Field) -> int:
    name = text[:3].lower()
    if name in field.names:
        return field.names.index(name) + field.least
    if text.isdecimal():
        number = int(text)
        if field.least <= number <= field.most + field.sunday:
            return number
    names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
    raise ValueError(f"{text!r} is no {field.name}: {field.least} to {field.most}{names}")
