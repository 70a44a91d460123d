"""Overview: how the whole queue is doing, as the ledger has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptflow.queue import records
from gptflow.queue.keys import CLASSES
from gptflow.queue.redis_store import RedisStore
from gptflow.request import JobClass
from gptflow.transport import WorkerRecord

_RUNG = "@fed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The queue at one moment. Depths are items: a message of a batch counts its rows.

    Attributes:
        depth: items that wait, by class.
        oldest: seconds for which the oldest job has waited that could have run, by class.
        rung: items whose doorbell is on its way to a worker.
        running: jobs and messages that are leased.
        delayed: jobs that wait for a time, such as that of another attempt.
        suspects: jobs that wait to run alone, because workers have died while they ran.
        dead: dead letters.
        pace: items that ended in a second, lately.
        totals: counters since the server was first used.
        workers: the live ones, the longest-running first.
    """

    depth: Mapping[JobClass, int]
    oldest: Mapping[JobClass, float]
    rung: int
    running: int
    delayed: int
    suspects: int
    dead: int
    pace: float
    totals: Mapping[str, int]
    workers: tuple[WorkerRecord, ...]

    @property
    def waiting(self) -> int:
        """Items that wait, of all classes."""
        return sum(self.depth.values())

    @property
    def backlog(self) -> float:
        """Seconds in which what waits would be done at the present pace."""
        return self.waiting / max(self.pace, 0.1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"waiting": self.waiting, "backlog": self.backlog}


def read_overview(store: RedisStore) -> Overview:
    """Ask the server: one pipeline, and the records of the workers.

    Raises:
        BrokerUnavailable: it does not answer.
    """
    keys = store.keys
    with store.reported(), store.client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hmget(keys.depth, [*CLASSES, _RUNG])
        for job_class in CLASSES:
            pipe.zrange(keys.waiting(job_class), 0, 0, withscores=True)
        for key in (keys.leases, keys.delayed, keys.suspects, keys.dead):
            pipe.zcard(key)
        pipe.hget(keys.policy, "pace")
        pipe.hgetall(keys.totals)
        pipe.zrange(keys.workers, 0, -1)
        (seconds, microseconds), depths, *more = pipe.execute()
        texts = store.client.mget([keys.worker(name) for name in more[-1]]) if more[-1] else []
    now = seconds + microseconds / 1e6
    oldest, (running, delayed, suspects, dead, pace, totals, _) = more[:3], more[3:]
    workers = [records.decode_worker(text) for text in texts if text]
    return Overview(
        depth={name: int(n or 0) for name, n in zip(CLASSES, depths, strict=False)},
        oldest={
            name: max(0.0, now - float(first[0][1])) if first else 0.0
            for name, first in zip(CLASSES, oldest, strict=True)
        },
        rung=int(depths[-1] or 0),
        running=running,
        delayed=delayed,
        suspects=suspects,
        dead=dead,
        pace=float(pace or 0),
        totals={name: int(number) for name, number in totals.items()},
        workers=tuple(sorted(workers, key=lambda worker: worker.started)),
    )
