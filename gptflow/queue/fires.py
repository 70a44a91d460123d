"""Fires: what a scheduler does next about a schedule. Only reckons; the clock is an argument.

A fire is missed if no scheduler was running at its time; the schedule's policy says whether it
is made up for. One that a running scheduler could not send, because Redis was away or the queue
full, is late, and is sent whatever the policy. Neither is sent after the schedule's window.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from gptflow.schedule import Schedule
from gptflow.timetable import latest

LATE = timedelta(minutes=1)
"""How late a fire may be sent, at least, that a scheduler was there for."""

PATIENCE = timedelta(seconds=5)
"""A new scheduler leaves what came before it to others for so long: they may be about to send it.

Whoever waits for a reply of Redis that does not come gives up, and tries again, within it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a schedule stands.

    Attributes:
        mark: up to when its fires are settled, as Redis has it.
        held: up to when they are held back for the job of an earlier one.
    """

    mark: str
    held: datetime | None = None
    paused: bool = False

    @property
    def settled(self) -> datetime:
        return read_mark(self.mark)


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """Since when a scheduler has been running, and since when it has known where things stand."""

    since: datetime
    informed: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Send the fire of this time; those before it that are not settled are let go."""

    time: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Let go the fires up to this time."""

    until: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to do before this time."""

    until: datetime


Step = Send | Drop | Wait


def next_step(schedule: Schedule, place: Place, watch: Watch, now: datetime) -> Step:
    """What to do next about a schedule."""
    settled = place.settled
    first = schedule.times.next(max(settled, now) if place.paused else settled)
    if first > now:
        return Wait(first)
    window = timedelta(seconds=schedule.catchup)
    if first > watch.since or (place.held is not None and first <= place.held):
        oldest = now - max(window, LATE)
        return Drop(oldest) if first < oldest else Send(first)
    # Missed, unless another scheduler was there.
    if schedule.policy != "all" and now < watch.informed + PATIENCE:
        return Wait(watch.informed + PATIENCE)
    found = None
    begin = max(settled, now - window)
    if schedule.policy == "all":
        found = schedule.times.next(begin)
    elif schedule.policy == "last":
        found = latest(schedule.times, begin, watch.since)
    return Drop(watch.since) if found is None or found > watch.since else Send(found)


def read_mark(mark: str) -> datetime:
    """A moment as Redis has it: Unix seconds with six decimals."""
    return datetime.fromtimestamp(float(mark), UTC)


def write_mark(moment: datetime) -> str:
    return f"{moment.timestamp():.6f}"
