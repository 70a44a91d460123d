"""RedisLedger: the records in Redis or Valkey, as workers use them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from gptflow.client import ITEMS_PER_MESSAGE
from gptflow.config import Settings
from gptflow.envelope import Join
from gptflow.errors import InvalidInput, MalformedMessage
from gptflow.queue import records
from gptflow.queue.batching import Batcher
from gptflow.queue.keys import CLASSES, queue_name
from gptflow.queue.ledger import Claim, Ledger, Piece, Refusal
from gptflow.queue.payload import Packed
from gptflow.queue.records import Ending
from gptflow.queue.redis_store import WORKER_TTL, RedisStore, enqueue_call, items_calls
from gptflow.queue.scripts import Call
from gptflow.queue.store import STREAM_LENGTH
from gptflow.request import JobClass
from gptflow.result import TERMINAL, Result
from gptflow.transport import WorkerRecord

DOORBELL_SECONDS = 5.0
"""Seconds after which a doorbell that nobody answered is rung again."""

_REAPED = 500
"""Jobs that one call brings back at most."""

_LOG_LINES = 50


class Fed(NamedTuple):
    """What a call for jobs gave.

    Attributes:
        jobs: whose doorbells were rung.
        more: whether others wait.
        suspects: how many wait to be run alone.
    """

    jobs: int
    more: bool
    suspects: int


class Ended(NamedTuple):
    """A job that ended, as far as it takes to go on with what follows it."""

    job_id: str
    wire: str | None
    signature: str | None
    result: str | None


class Reaped(NamedTuple):
    """What was brought back: by leases that ran out, and so on."""

    leases: int
    doorbells: int
    dead: int
    delayed: int


class RedisLedger(Ledger):
    """The ledger of a worker; calls of many threads share round trips.

    Args:
        store: whose records these are; it stays open.
        lease: seconds after its last renewal that a claim ends.
    """

    def __init__(self, store: RedisStore, *, lease: float, dead_ttl: int) -> None:
        self._store = store
        self._keys = store.keys
        self._lease = lease
        self._dead_ttl = dead_ttl
        self._batcher = Batcher(self._try_all)

    @property
    def round_trips(self) -> int:
        """Round trips to the server so far."""
        return self._store.scripts.round_trips

    def close(self) -> None:
        self._batcher.close()

    # Jobs.

    def adopt(self, packed: Packed) -> str | None:
        verdict, job_id, *_ = self._call(enqueue_call(self._keys, packed, adopt=True))
        if verdict == "invalid":
            raise InvalidInput(f"The message has a malformed {job_id}.")
        return job_id if job_id == packed.envelope.id else None

    def claim(self, job_id: str, worker: str, delivery: int) -> Claim | Refusal:
        verdict, *more = self._call(
            Call("claim", [self._keys.job(job_id)], [job_id, worker, delivery, self._lease])
        )
        if verdict not in ("run", "late"):
            return cast(Refusal, verdict)
        fence, attempt, crashes, submitted, task, wire, signature, at, revived = more
        return Claim(
            job_id=job_id,
            fence=int(fence),
            attempt=int(attempt),
            crashes=int(crashes),
            submitted=float(submitted),
            task=task,
            wire=wire,
            signature=signature or None,
            at=int(at) if at else None,
            revived=bool(revived),
            late=verdict == "late",
        )

    def finish(self, claim: Claim, ending: Ending) -> bool:
        state = ending.result.state
        assert state in TERMINAL
        return bool(
            self._call(
                Call(
                    "done",
                    [self._keys.job(claim.job_id)],
                    [
                        claim.job_id,
                        claim.fence,
                        state,
                        ending.text,
                        self._store.ttl,
                    ],
                )
            )
        )

    def release(self, claim: Claim, *, wait: float, counts: bool) -> bool:
        return bool(self._call(self._release(claim.job_id, claim.fence, wait, counts)))

    def give_up(self, job_id: str) -> None:
        self._call(self._release(job_id, "", 0, False))

    def _release(self, job_id: str, fence: Any, wait: float, counts: bool) -> Call:
        return Call("release", [self._keys.job(job_id)], [job_id, fence, wait, int(counts)])

    def finish_items(self, batch_id: str, endings: Mapping[int, Ending], claim: Claim) -> bool:
        job_id, fence = claim.job_id, str(claim.fence)
        calls = items_calls(
            self._keys, batch_id, endings, self._store.ttl, job_id=job_id, fence=fence
        )
        return all(self._call(call) >= 0 for call in calls)

    def mark(self, claim: Claim, item: int) -> None:
        with self._store.reported():
            self._store.client.hset(self._keys.job(claim.job_id), "at", item)

    def ended_items(self, batch_id: str) -> set[int]:
        return self._store.ended_items(batch_id)

    def append(self, pieces: Sequence[Piece]) -> None:
        ttl, keys = self._store.ttl, self._keys
        calls = [
            Call(
                "append",
                [keys.stream(piece.claim.job_id), keys.job(piece.claim.job_id)],
                [
                    piece.claim.fence,
                    STREAM_LENGTH,
                    ttl,
                    piece.event.kind,
                    piece.event.text,
                    piece.event.sample,
                    "" if piece.event.at is None else piece.event.at,
                ],
            )
            for piece in pieces
        ]
        if calls:
            with self._store.reported():
                self._store.scripts.run_all(calls)

    def refuse(self, result: Result, *, code: str = "") -> bool:
        return self._store.refuse(result, code=code)

    # What follows a job.

    def unfollowed(self, seconds: float, most: int) -> list[Ended]:
        """Ended jobs that are followed by others, which nobody has enqueued for some seconds."""
        keys, client = self._keys, self._store.client
        with self._store.reported():
            until = client.time()[0] - seconds
            ids = client.zrangebyscore(keys.outbox, "-inf", until, start=0, num=most)
            with client.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hmget(keys.job(job_id), ["wire", "sig", "result"])
                rows = pipe.execute()
        return [Ended(job_id, *row) for job_id, row in zip(ids, rows, strict=True)]

    def followed(self, job_id: str) -> None:
        """Say that what follows a job has been enqueued."""
        self._call(Call("followed", [self._keys.job(job_id)], [job_id]))

    def join(self, place: Join, job_id: str) -> list[Result | None] | None:
        """Note that a job of a group has ended.

        Returns:
            The results of all, in their order, once all have ended; those that have expired
            are None.
        """
        key, client = self._keys.group(place.group), self._store.client
        with self._store.reported():
            with client.pipeline(transaction=True) as pipe:
                pipe.hset(key, str(place.index), job_id)
                pipe.expire(key, self._store.ttl)
                pipe.hlen(key)
                ended = pipe.execute()[-1]
            if ended < place.size:
                return None
            ids = client.hmget(key, [str(index) for index in range(place.size)])
            with client.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hget(self._keys.job(job_id), "result")
                texts = pipe.execute()
        return [None if text is None else records.decode(text) for text in texts]

    def load_aside(self, job_id: str, most: int) -> str:
        key, client = self._keys.input(job_id), self._store.client
        with self._store.reported():
            if (size := client.strlen(key)) > most:
                raise MalformedMessage(f"The input takes {size} bytes; {most} are allowed.")
            text = client.get(key)
        if text is None:
            raise InvalidInput("The input that the job refers to does not exist.")
        return cast(str, text)

    # The queue.

    def feed(self, credit: int, reserve: int, classes: Iterable[JobClass] = CLASSES) -> Fed:
        """Ring for the next jobs.

        Args:
            credit: items that this worker can take now.
            reserve: items of the credit that only interactive jobs may use.
            classes: whose queues the worker reads.
        """
        read = set(classes)
        queues = [self._keys.queue(job_class) for job_class in CLASSES]
        names = [queue_name(job_class) if job_class in read else "" for job_class in CLASSES]
        with self._store.reported():
            jobs, more, suspects = self._store.scripts.run(
                Call("feed", queues, [credit, reserve, *names])
            )
        return Fed(jobs, bool(more), suspects)

    def take_suspect(self, worker: str, seconds: float, *, idle: bool) -> str | None:
        """The id of a job to run alone, where this worker is the one to do it.

        Args:
            seconds: for which no other worker may take one; renewed by each call.
            idle: whether nothing else runs here.

        Returns:
            An id; empty where the worker is to become idle first; None where there is nothing
            to do, or another worker does it.
        """
        call = Call("suspect", [self._keys.suspects], [worker, max(1, round(seconds)), int(idle)])
        with self._store.reported():
            job_id: str | None = self._store.scripts.run(call)
        return job_id

    def beat(self, claims: Sequence[Claim]) -> set[str]:
        """Renew the leases of what runs here. Returns the ids of what no longer should."""
        arguments: list[Any] = [self._lease]
        for claim in claims:
            arguments += [claim.job_id, claim.fence]
        with self._store.reported():
            return set(self._store.scripts.run(Call("beat", [self._keys.leases], arguments)))

    def reap(self, *, doorbell_seconds: float = DOORBELL_SECONDS, regular: bool = False) -> Reaped:
        """Bring back what got lost.

        Args:
            regular: the caller has done so before, and often. If nobody has for long, then the
                server was away, and leases that ran out meanwhile are given another time.
        """
        lease = self._lease if regular else 0
        arguments = [_REAPED, doorbell_seconds, self._dead_ttl, lease]
        call = Call("reap", [self._keys.leases], arguments)
        with self._store.reported():
            return Reaped(*self._store.scripts.run(call))

    def set_policy(self, settings: Settings) -> None:
        """Tell the server what limits and weights hold."""
        values: dict[str, Any] = {
            **{f"limit:{name}": getattr(settings, f"limit_{name}") for name in CLASSES},
            "limit:tenant": settings.limit_tenant,
            "memory": settings.memory_limit,
            "payload": 2 * settings.max_payload * ITEMS_PER_MESSAGE,
            **{f"weight:{tenant}": weight for tenant, weight in settings.tenant_weights.items()},
        }
        with self._store.reported(), self._store.client.pipeline() as pipe:
            pipe.delete(self._keys.policy)
            pipe.hset(self._keys.policy, mapping=values)
            pipe.execute()

    # Signs of life.

    def announce(self, record: WorkerRecord, log: Sequence[str] = ()) -> None:
        """Say that a worker is alive, for the next `WORKER_TTL` seconds.

        Args:
            log: the last lines of its log, for when it dies.
        """
        keys, store = self._keys, self._store
        with store.reported(), store.client.pipeline() as pipe:
            pipe.set(keys.worker(record.name), records.encode_worker(record), ex=WORKER_TTL)
            pipe.zadd(keys.workers, {record.name: time.time()})
            pipe.expire(keys.workers, store.ttl)
            if log:
                pipe.delete(keys.log(record.name))
                pipe.rpush(keys.log(record.name), *log[-_LOG_LINES:])
                pipe.expire(keys.log(record.name), store.ttl)
            pipe.zremrangebyscore(keys.workers, "-inf", time.time() - 2 * WORKER_TTL)
            pipe.execute()

    def withdraw(self, worker: str) -> None:
        """Say that a worker has stopped."""
        keys, store = self._keys, self._store
        with store.reported(), store.client.pipeline() as pipe:
            pipe.delete(keys.worker(worker), keys.log(worker))
            pipe.zrem(keys.workers, worker)
            pipe.execute()

    def _call(self, call: Call) -> Any:
        with self._store.reported():
            return self._batcher.run(call)

    def _try_all(self, calls: Sequence[Call]) -> list[Any]:
        with self._store.reported():
            return self._store.scripts.try_all(calls)
