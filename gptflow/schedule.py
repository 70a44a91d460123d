"""Schedules: which task runs on which input, and when; and the fires that they come to.

A fire is one moment of a schedule. Its job's id and idempotency key follow from the schedule's
name and that moment, so two schedulers that send it send the same job.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import zoneinfo
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal, Self, TypeGuard, get_args

from gptflow.cron import Cron
from gptflow.envelope import Envelope
from gptflow.errors import InvalidInput, ScheduleError
from gptflow.request import JobClass
from gptflow.suggestion import did_you_mean
from gptflow.timetable import EPOCH, MICROSECOND, CronTimes, Every, Timetable

Policy = Literal["skip", "last", "all"]
"""Which of the fires to make up for that came while no scheduler ran."""

Overlap = Literal["allow", "skip", "queue", "replace"]
"""What to do with a fire when the job of an earlier one has not ended."""

DAY = 86_400.0
_LONGEST = 366 * DAY
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_KEY = re.compile(r"schedule:([A-Za-z0-9_.-]+):(\S+)")
_FIVE = "Five fields: minute, hour, day of the month, month, day of the week; '*/5 * * * *'."
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Fire:
    """One moment of a schedule."""

    schedule: str
    time: datetime

    @classmethod
    def of(cls, envelope: Envelope) -> Self | None:
        """The fire that a job is of; None for a job of no schedule."""
        match = _KEY.fullmatch(envelope.key or "")
        if match is None:
            return None
        try:
            return cls(match[1], datetime.fromisoformat(match[2]))
        except ValueError:
            return None

    @property
    def key(self) -> str:
        """The idempotency key of its job: `schedule:<name>:<time>`."""
        return f"schedule:{self.schedule}:{iso(self.time)}"

    def job_id(self, app: str) -> str:
        """The id of its job in an application.

        A UUIDv8 (RFC 9562) that begins with the time, so that it sorts among other jobs' ids.
        """
        digest = hashlib.sha256(f"{app}\n{self.key}".encode()).digest()
        random = int.from_bytes(digest[:10], "big")
        value = (self.time - EPOCH) // timedelta(milliseconds=1) << 80 | 0x8 << 76
        value |= (random >> 68) << 64 | 0b10 << 62 | random & (1 << 62) - 1
        digits = f"{value:032x}"
        return f"job_{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Run `task` on `input` whenever it is time.

    Args:
        name: `<plugin>.<name>`.
        cron: five fields, read on the wall clocks of `timezone`; or else `every`.
        every: seconds from one fire to the next, counted from the beginning of 1970 in UTC.
        policy: which of the fires to make up for that came while no scheduler ran.
        catchup: seconds after its time that a fire may still be sent.
        overlap: what to do with a fire when the job of an earlier one has not ended.

    Raises:
        ScheduleError: something does not fit.
    """

    name: str
    task: str
    input: Any
    plugin: str
    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    policy: Policy = "last"
    catchup: float = DAY
    overlap: Overlap = "allow"
    job_class: JobClass = "standard"
    tenant: str = "default"
    times: Timetable = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise self._error(
                "has a name that will not do",
                "Letters, digits, dots, dashes and underscores; 128 of them at most.",
            )
        for option, choices in _CHOICES.items():
            if (value := getattr(self, option)) not in choices:
                raise self._error(
                    f"has {option}={value!r}",
                    f"{option} is one of {', '.join(map(repr, choices))}.",
                )
        if not _is_number(self.catchup) or not 0 <= self.catchup <= _LONGEST:
            raise self._error(
                f"has catchup={self.catchup!r}", "Seconds, from 0 to 31622400; 86400 is a day."
            )
        object.__setattr__(self, "times", self._timetable())
        try:
            json.dumps(self.input, allow_nan=False)
            self.envelope("gptflow", EPOCH)
        except (TypeError, ValueError) as error:
            raise self._error(f"has an input that is not JSON: {error}") from None
        except InvalidInput as error:
            raise self._error(f"cannot be sent: {error.message.rstrip('.')}") from None

    @property
    def when(self) -> str:
        """When it fires, for people."""
        if self.every is not None:
            return f"every {self.every:g} s"
        return f"{self.cron} {self.timezone}"

    @property
    def zone(self) -> tzinfo:
        return _zone(self.timezone)

    def envelope(self, app: str, time: datetime) -> Envelope:
        """The job of one fire in an application."""
        fire = Fire(self.name, time)
        return Envelope.of(
            id=fire.job_id(app),
            task=self.task,
            input=self.input,
            key=fire.key,
            tenant=self.tenant,
            job_class=self.job_class,
        )

    def _timetable(self) -> Timetable:
        if (self.cron is None) == (self.every is None):
            raise self._error(
                "needs either cron or every", "cron='0 * * * *' is every hour, every=1.0 a second."
            )
        if self.cron is not None:
            return CronTimes(self._parse(self.cron), self._find_zone())
        if not _is_number(self.every) or not 1 <= self.every <= _LONGEST:
            raise self._error(
                f"has every={self.every!r}", "Seconds, from 1 to 31622400; every=60.0 is a minute."
            )
        if self.timezone != "UTC":
            raise self._error(
                "has every and a timezone",
                "A pace has no time of day: leave timezone out, or write cron.",
            )
        return Every(round(self.every * 1e6) * MICROSECOND)

    def _parse(self, cron: Any) -> Cron:
        if not isinstance(cron, str):
            raise self._error(f"has the cron expression {cron!r}", _FIVE)
        try:
            return Cron.parse(cron)
        except ValueError as error:
            reason = str(error)
        known = _NICKNAMES.get(cron.strip().lower())
        hint = f"Write cron='{known}'." if known else _FIVE
        if len(cron.split()) == 6:
            hint += " For seconds, leave cron out and write every=1.0."
        elif "would never fire" in reason:
            hint = "The first of a month always comes: cron='0 0 1 * *'."
        raise self._error(f"has the cron expression {cron!r}: {reason}", hint)

    def _find_zone(self) -> tzinfo:
        try:
            return _zone(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            known = zoneinfo.available_timezones()
        if not known:
            hint = "This machine has no list of time zones: pip install tzdata."
        else:
            like = did_you_mean(str(self.timezone), known)
            hint = like or "Names are those of the IANA, such as 'Europe/Berlin' or 'UTC'."
        raise self._error(f"is in the time zone {self.timezone!r}, which is unknown", hint)

    def _error(self, complaint: str, hint: str | None = None) -> ScheduleError:
        return ScheduleError(f"Schedule {self.name!r} {complaint}.", hint=hint)


_CHOICES: dict[str, tuple[str, ...]] = {
    "policy": get_args(Policy),
    "overlap": get_args(Overlap),
    "job_class": get_args(JobClass),
}


def iso(moment: datetime) -> str:
    """A moment in UTC, as keys and logs have it: `2026-03-06T12:05:00Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    # UTC needs no list of time zones.
    return UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
