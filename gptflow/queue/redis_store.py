"""RedisStore: the records in Redis or Valkey. What must not be torn apart is a Lua script."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, cast

from gptflow.envelope import Envelope
from gptflow.errors import InvalidInput, JobNotFound
from gptflow.queue import connection, records
from gptflow.queue.keys import Keys
from gptflow.queue.message import celery_message
from gptflow.queue.payload import Packed
from gptflow.queue.records import Claim
from gptflow.queue.store import BLOCK, LISTED, STREAM_LENGTH, Refusal, Store
from gptflow.result import TERMINAL, Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

_ENTRY = re.compile(r"\d+(-\d+)?")

_SLICE = 500
"""Keys, fields or stream entries to ask for at once."""

_MESSAGES = 64
"""Messages of a batch to enqueue at once."""

WORKER_TTL = 15
"""Seconds after its last sign of life that a worker counts as gone."""


class RedisStore(Store):
    """Records under the prefix of one application; every key but the queues expires.

    Args:
        url: of the server; nothing is sent before the first call.
        app: the application.
        ttl: seconds to keep a record after the job's submission or end.
    """

    def __init__(self, url: str, app: str, ttl: int) -> None:
        self.keys = Keys(app)
        # redis-py's types do not say that replies are decoded.
        self.client: Any = connection.open_client(url)
        self._url = url
        self._ttl = ttl
        self._submit = self._script("submit")
        self._claim = self._script("claim")
        self._finish = self._script("finish")
        self._items = self._script("items")
        self._release = self._script("release")

    def _script(self, name: str) -> Callable[..., Any]:
        source = resources.files("gptflow.queue").joinpath("lua", f"{name}.lua").read_text("utf-8")
        script = self.client.register_script(source)

        @functools.wraps(script)
        def call(keys: Sequence[str], args: Sequence[Any], client: Any = None) -> Any:
            return script(keys=keys, args=args, client=client)

        return call

    def reported(self) -> Any:
        """A context in which redis-py's errors become ours."""
        return connection.reported(self._url)

    def ping(self) -> None:
        """Raises `BrokerUnavailable`."""
        with self.reported():
            self.client.ping()

    # What callers use.

    def submit(self, packed: Packed) -> str:
        with self.reported():
            return cast(str, self._submit(*self._submission(packed)))

    def open_batch(self, record: BatchRecord) -> None:
        key = self.keys.batch(record.id)
        with self.reported(), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=records.flatten(record))
            pipe.expire(key, self._ttl)
            pipe.execute()

    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        members = self.keys.members(batch_id)
        with self.reported():
            # In slices, so that a large batch holds up nobody else's commands.
            for start in range(0, len(chunks), _MESSAGES):
                part = chunks[start : start + _MESSAGES]
                with self.client.pipeline(transaction=True) as pipe:
                    pipe.sadd(members, *(chunk.envelope.id for chunk in part))
                    pipe.expire(members, self._ttl)
                    pipe.expire(self.keys.batch(batch_id), self._ttl)
                    for chunk in part:
                        self._submit(*self._submission(chunk), pipe)
                    pipe.execute()

    def _submission(self, packed: Packed) -> tuple[list[str], list[Any]]:
        envelope, keys, now = packed.envelope, self.keys, time.time()
        job = keys.job(envelope.id)
        idem = job
        if envelope.key:
            idem = keys.idempotency(envelope.tenant, envelope.task, envelope.key)
        fields = records.flatten(records.new_job(envelope, now, packed.items))
        if envelope.key:
            fields["idem"] = idem
        queue = keys.queue(envelope.job_class)
        return (
            [job, keys.jobs, queue, keys.input(envelope.id), idem],
            [
                envelope.id,
                keys.job(""),
                now,
                self._ttl,
                LISTED,
                celery_message(packed),
                packed.aside or "",
                *_pairs(fields),
            ],
        )

    def job(self, job_id: str) -> JobRecord:
        with self.reported():
            values = self.client.hmget(self.keys.job(job_id), records.JOB_FIELDS)
        return records.read_job(_known(values, job_id))

    def jobs(self, state: State | None, limit: int) -> list[JobRecord]:
        found: list[JobRecord] = []
        with self.reported():
            for ids in self._newest():
                with self.client.pipeline(transaction=False) as pipe:
                    for job_id in ids:
                        pipe.hmget(self.keys.job(job_id), records.JOB_FIELDS)
                    rows = [records.read_job(row) for row in pipe.execute() if row[0] is not None]
                found += [row for row in rows if state in (None, row.state)]
                if len(found) >= limit:
                    break
        return found[:limit]

    def _newest(self) -> Iterator[list[str]]:
        for start in range(0, LISTED, _SLICE):
            ids = self.client.zrevrange(self.keys.jobs, start, start + _SLICE - 1)
            if not ids:
                return
            yield ids

    def result(self, job_id: str) -> Result | None:
        with self.reported():
            values = self.client.hmget(self.keys.job(job_id), ["id", "result"])
        _, text = _known(values, job_id)
        return None if text is None else records.decode(text)

    def read_events(self, job_id: str, after: str, block: float) -> list[Event]:
        entries = self._read_stream(job_id, after, block)
        return [
            Event(
                id=entry,
                kind=fields["kind"],
                text=fields.get("text", ""),
                sample=int(fields.get("sample", 0)),
            )
            for entry, fields in entries
        ]

    def batch(self, batch_id: str) -> BatchRecord:
        with self.reported():
            values = self.client.hmget(self.keys.batch(batch_id), records.BATCH_FIELDS)
        return records.read_batch(_known(values, batch_id))

    def members(self, batch_id: str) -> set[str]:
        with self.reported():
            return set(self.client.smembers(self.keys.members(batch_id)))

    def ended_items(self, batch_id: str) -> set[int]:
        with self.reported():
            return {int(number) for number in self.client.hkeys(self.keys.results(batch_id))}

    def read_items(self, batch_id: str, after: str, block: float) -> tuple[str, list[int]]:
        numbers: list[int] = []
        for entry, fields in self._read_stream(batch_id, after, block):
            after = entry
            numbers += map(int, fields["items"].split(","))
        return after, numbers

    def item_results(self, batch_id: str, numbers: Sequence[int]) -> dict[int, Result]:
        found: dict[int, Result] = {}
        with self.reported():
            for start in range(0, len(numbers), _SLICE):
                part = numbers[start : start + _SLICE]
                texts = self.client.hmget(self.keys.results(batch_id), [str(n) for n in part])
                pairs = zip(part, texts, strict=True)
                found |= {number: records.decode(text) for number, text in pairs if text}
        return found

    def end(self, result: Result, *, announce: bool = False) -> bool | None:
        code = self._end(result, fence="", channel=self.keys.cancels if announce else "")
        return None if code < 0 else code == 1

    def mark_batch_cancelled(self, batch_id: str) -> None:
        with self.reported():
            self.client.hset(self.keys.batch(batch_id), "cancelled", "1")

    # What workers use.

    def claim(self, envelope: Envelope, worker: str, delivery: int) -> Claim | Refusal:
        keys, now = self.keys, time.time()
        deadline = "" if envelope.deadline is None else envelope.deadline
        fields = records.flatten(records.new_job(envelope, now))
        with self.reported():
            verdict, *more = self._claim(
                [keys.job(envelope.id), keys.jobs],
                [
                    envelope.id,
                    worker,
                    delivery,
                    keys.worker(""),
                    now,
                    self._ttl,
                    deadline,
                    *_pairs(fields),
                ],
            )
        if verdict != "run":
            return cast(Refusal, verdict)
        return Claim(fence=int(more[0]), submitted=float(more[1]))

    def finish(self, claim: Claim, result: Result) -> bool:
        return self._end(result, fence=str(claim.fence)) == 1

    def _end(self, result: Result, *, fence: str, channel: str = "") -> int:
        keys, job_id = self.keys, result.id
        assert result.state in TERMINAL
        text = records.encode(result)
        with self.reported():
            code = self._finish(
                [keys.job(job_id), keys.stream(job_id), keys.input(job_id)],
                [job_id, fence, result.state, time.time(), self._ttl, text, channel],
            )
        return int(code)

    def finish_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        keys = self.keys
        names = (keys.batch, keys.results, keys.stream, keys.members)
        numbers = list(results)
        with self.reported():
            for start in range(0, len(numbers), _SLICE):
                arguments: list[Any] = [self._ttl]
                for number in numbers[start : start + _SLICE]:
                    result = results[number]
                    ending = "done" if result.ok else "failed"
                    arguments += [number, ending, records.encode(result)]
                self._items([name(batch_id) for name in names], arguments)

    def append(self, events: Iterable[tuple[str, Event]]) -> None:
        with self.reported(), self.client.pipeline(transaction=False) as pipe:
            for job_id, event in events:
                stream = self.keys.stream(job_id)
                fields = {"kind": event.kind, "text": event.text, "sample": event.sample}
                pipe.xadd(stream, fields, maxlen=STREAM_LENGTH, approximate=True)
                pipe.expire(stream, self._ttl)
            pipe.execute()

    def load_aside(self, reference: str) -> str:
        # The reference came from outside; it must not reach other keys of this server.
        if reference.startswith(self.keys.input("")):
            with self.reported():
                text = self.client.get(reference)
            if text is not None:
                return cast(str, text)
        raise InvalidInput("The input that the job refers to does not exist.")

    def delay(self, packed: Packed) -> None:
        envelope = packed.envelope
        member = f"{self.keys.queue(envelope.job_class)} {celery_message(packed)}"
        with self.reported():
            self.client.zadd(self.keys.delayed, {member: envelope.not_before or 0.0})

    def release_delayed(self) -> int:
        """Enqueue the delayed messages whose time has come; returns how many."""
        with self.reported():
            return int(self._release([self.keys.delayed], [time.time(), _SLICE]))

    def renew(self, job_ids: Sequence[str]) -> set[str]:
        """Keep the records of running jobs from expiring; returns which of them have ended."""
        with self.reported(), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self.keys.job(job_id), "state")
                pipe.expire(self.keys.job(job_id), self._ttl)
            states = pipe.execute()[::2]
        return {id for id, state in zip(job_ids, states, strict=True) if state in TERMINAL}

    def input_key(self, job_id: str) -> str:
        return self.keys.input(job_id)

    # Workers' signs of life.

    def announce(self, record: WorkerRecord) -> None:
        """Say that a worker is alive, for the next `WORKER_TTL` seconds."""
        with self.reported(), self.client.pipeline() as pipe:
            pipe.set(self.keys.worker(record.name), records.encode_worker(record), ex=WORKER_TTL)
            pipe.zadd(self.keys.workers, {record.name: time.time()})
            pipe.expire(self.keys.workers, self._ttl)
            pipe.execute()

    def withdraw(self, worker: str) -> None:
        """Say that a worker has stopped."""
        with self.reported(), self.client.pipeline() as pipe:
            pipe.delete(self.keys.worker(worker))
            pipe.zrem(self.keys.workers, worker)
            pipe.execute()

    def workers(self) -> list[WorkerRecord]:
        """The live workers, the longest-running first."""
        with self.reported():
            self.client.zremrangebyscore(self.keys.workers, "-inf", time.time() - 2 * WORKER_TTL)
            names = self.client.zrange(self.keys.workers, 0, -1)
            texts = self.client.mget([self.keys.worker(name) for name in names]) if names else []
        found = [records.decode_worker(text) for text in texts if text]
        return sorted(found, key=lambda worker: worker.started)

    def close(self) -> None:
        self.client.close()

    def _read_stream(
        self, job_or_batch_id: str, after: str, block: float
    ) -> list[tuple[str, dict[str, Any]]]:
        stream = self.keys.stream(job_or_batch_id)
        # BLOCK 0 means for ever, so the shortest wait is a millisecond.
        wait = max(1, int(min(block, BLOCK) * 1000))
        if not _ENTRY.fullmatch(after):
            raise InvalidInput(f"{after!r} is not an event's id.")
        with self.reported():
            reply = self.client.xread({stream: after}, block=wait, count=_SLICE)
        streams = reply.items() if isinstance(reply, dict) else reply
        return [entry for _, entries in streams for entry in _flat(entries)]


def _flat(entries: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    # RESP3 replies nest the entries of each stream once more.
    for entry in entries:
        if isinstance(entry, list):
            yield from _flat(entry)
        else:
            yield entry


def _pairs(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _known(values: Sequence[str | None], job_or_batch_id: str) -> Sequence[str | None]:
    if values[0] is None:
        raise JobNotFound(
            f"There is no {'batch' if job_or_batch_id.startswith('batch_') else 'job'} "
            f"{job_or_batch_id!r}, or its record has expired.",
            hint="`gptflow jobs list` shows the newest jobs.",
        )
    return values
