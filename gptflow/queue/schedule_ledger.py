"""ScheduleLedger: what schedulers remember, in the ledger's Redis. Times are the server's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, cast

from gptflow.queue.fires import Place, read_mark, write_mark
from gptflow.queue.payload import Packed
from gptflow.queue.redis_store import RedisStore, enqueue_call
from gptflow.queue.scripts import Call
from gptflow.result import State
from gptflow.schedule import Schedule

Verdict = Literal[
    "accepted",
    "dropped",
    "full",
    "held",
    "invalid",
    "known",
    "memory",
    "moved",
    "paused",
    "skipped",
]

_FIELDS = ("mark", "fire", "job", "fired", "skipped", "paused")


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """What came of a fire.

    Attributes:
        what: the job's id, that of the job in its way, or why it was refused.
        more: the id of the job that it replaces, or the seconds to wait.
    """

    verdict: Verdict
    what: str = ""
    more: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """What is known of a schedule at one moment.

    Attributes:
        settled: up to when its fires are settled; None if no scheduler has seen it.
        fire: the last fire that was sent.
        job: its job.
        job_state: that job's; None if its record has expired.
        fired: how many have been sent.
        skipped: how many were let go because the job of an earlier one had not ended.
    """

    settled: datetime | None = None
    fire: datetime | None = None
    job: str | None = None
    job_state: State | None = None
    fired: int = 0
    skipped: int = 0
    paused: datetime | None = None


class ScheduleLedger:
    """Every call may raise `BrokerUnavailable`."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def watch(
        self, schedules: Sequence[Schedule], *, declare: bool = False
    ) -> tuple[datetime, list[Place]]:
        """The server's time, and where the schedules stand.

        Args:
            declare: one whose timetable is not the one that is known begins anew.
        """
        keys = [self._store.keys.schedule(schedule.name) for schedule in schedules]
        when = [schedule.when if declare else "" for schedule in schedules]
        with self._store.reported():
            time, *found = self._store.scripts.run(Call("schedule_watch", keys, when))
        places = [
            Place(mark=mark, held=read_mark(held) if held else None, paused=bool(paused))
            for mark, held, paused in found
        ]
        return read_mark(time), places

    def settle(
        self, schedule: Schedule, mark: str, until: datetime, packed: Packed | None
    ) -> Settled:
        """Settle a schedule's fires up to a moment, if nobody has since `mark` was read.

        Args:
            packed: the job of the fire at that moment; None to let them go.
        """
        keys = self._store.keys
        arguments = [mark, write_mark(until), schedule.overlap, self._store.ttl]
        names = [keys.schedule(schedule.name)]
        if packed is not None:
            call = enqueue_call(keys, packed)
            names += call.keys
            arguments += call.args
        with self._store.reported():
            verdict, *rest = self._store.scripts.run(Call("schedule_fire", names, arguments))
        return Settled(cast(Verdict, verdict), *rest)

    def pause(self, name: str, paused: bool) -> bool:
        """Let a schedule rest, or go on. False if it was so already."""
        key = self._store.keys.schedule(name)
        with self._store.reported():
            reply = self._store.scripts.run(Call("schedule_pause", [key], [int(paused)]))
        return bool(reply)

    def states(self, names: Sequence[str]) -> Mapping[str, ScheduleState]:
        """What is known of schedules, by name."""
        keys = self._store.keys
        with self._store.reported(), self._store.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(keys.schedule(name), _FIELDS)
            found = {name: _state(row) for name, row in zip(names, pipe.execute(), strict=True)}
            with_job = {name: state.job for name, state in found.items() if state.job}
            for job in with_job.values():
                pipe.hget(keys.job(job), "state")
            for name, job_state in zip(with_job, pipe.execute(), strict=True):
                found[name] = dataclasses.replace(found[name], job_state=job_state)
        return found


def _state(row: Sequence[str | None]) -> ScheduleState:
    mark, fire, job, fired, skipped, paused = row
    return ScheduleState(
        settled=read_mark(mark) if mark else None,
        fire=read_mark(fire) if fire else None,
        job=job,
        fired=int(fired or 0),
        skipped=int(skipped or 0),
        paused=read_mark(paused) if paused else None,
    )
