"""RedisStore: the records in Redis or Valkey, as callers use them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptflow.errors import InvalidInput, JobCancelled, JobNotFound, QueueFull
from gptflow.queue import connection, records
from gptflow.queue.keys import Keys
from gptflow.queue.payload import Packed
from gptflow.queue.records import Ending
from gptflow.queue.scripts import Call, Scripts
from gptflow.queue.store import BLOCK, LISTED, Store
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
    """Records under the prefix of one application; what has ended expires.

    Args:
        url: of the server; nothing is sent before the first call.
        app: the application.
        ttl: seconds to keep a record after the job's end.
        tls: how to check the server; see `gptflow.queue.connection.tls_options`.
    """

    def __init__(
        self, url: str, app: str, ttl: int, *, tls: Mapping[str, Any] | None = None
    ) -> None:
        self.keys = Keys(app)
        # redis-py's types do not say that replies are decoded.
        self.client: Any = connection.open_client(url, tls)
        self.scripts = Scripts(self.client, self.keys.prefix)
        self.ttl = ttl
        self._url = url

    def reported(self) -> Any:
        """A context in which redis-py's errors become ours."""
        return connection.reported(self._url)

    def ping(self) -> None:
        """Raises `BrokerUnavailable`."""
        with self.reported():
            self.client.ping()

    def submit(self, packed: Packed) -> str:
        with self.reported():
            reply = self.scripts.run(enqueue_call(self.keys, packed))
        return accepted(reply, packed)

    def open_batch(self, record: BatchRecord) -> None:
        key = self.keys.batch(record.id)
        record = dataclasses.replace(record, total=0, sealed=False)
        with self.reported(), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=records.flatten(record))
            pipe.expire(key, self.ttl)
            pipe.execute()

    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        with self.reported():
            # In slices, so that a large batch holds up nobody else's commands.
            for start in range(0, len(chunks), _MESSAGES):
                part = chunks[start : start + _MESSAGES]
                replies = self.scripts.run_all([enqueue_call(self.keys, c) for c in part])
                for chunk, reply in zip(part, replies, strict=True):
                    accepted(reply, chunk)

    def seal_batch(
        self, batch_id: str, total: int | None = None, *, cancelled: bool = False
    ) -> None:
        call = Call(
            "seal",
            [self.keys.batch(batch_id), self.keys.stream(batch_id)],
            [batch_id, "" if total is None else total, int(cancelled), self.ttl],
        )
        with self.reported():
            code = self.scripts.run(call)
        if code < 0:
            raise _not_found(batch_id)

    def job(self, job_id: str) -> JobRecord:
        with self.reported():
            values = self.client.hmget(self.keys.job(job_id), records.JOB_FIELDS)
        return records.read_job(_known(values, job_id))

    def jobs(self, state: State | None, limit: int) -> list[JobRecord]:
        found: list[JobRecord] = []
        with self.reported():
            for ids in self._newest(self.keys.jobs):
                found += [row for row in self._read_jobs(ids) if state in (None, row.state)]
                if len(found) >= limit:
                    break
        return found[:limit]

    def _newest(self, key: str) -> Iterator[list[str]]:
        for start in range(0, LISTED, _SLICE):
            ids = self.client.zrevrange(key, start, start + _SLICE - 1)
            if not ids:
                return
            yield ids

    def _read_jobs(self, ids: Sequence[str]) -> list[JobRecord]:
        """The records of those that have one."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(self.keys.job(job_id), records.JOB_FIELDS)
            return [records.read_job(row) for row in pipe.execute() if row[0] is not None]

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
                at=int(fields["at"]) if fields.get("at") else None,
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
            numbers += map(int, filter(None, fields["items"].split(",")))
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

    def end(self, result: Result) -> bool | None:
        assert result.state in TERMINAL
        call = Call(
            "cancel",
            [self.keys.job(result.id)],
            [result.id, result.state, records.encode(result), self.ttl],
        )
        with self.reported():
            code = self.scripts.run(call)
        return None if code < 0 else code == 1

    def refuse(self, result: Result, *, code: str = "") -> bool:
        """As `gptflow.queue.ledger.Ledger.refuse`."""
        call = Call(
            "refuse",
            [self.keys.job(result.id)],
            [
                result.id[:80],
                result.task[:128],
                result.state,
                records.encode(result),
                self.ttl,
                code,
            ],
        )
        with self.reported():
            return bool(self.scripts.run(call))

    def end_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        with self.reported():
            endings = {number: Ending.of(result) for number, result in results.items()}
            self.scripts.run_all(items_calls(self.keys, batch_id, endings, self.ttl))

    def message_items(self, job_id: str) -> dict[int, str]:
        with self.reported():
            wire = self.client.hget(self.keys.job(job_id), "wire")
            aside = self.client.get(self.keys.input(job_id))
        return records.item_names(wire, aside)

    def job_input(self, job_id: str) -> Any:
        with self.reported():
            values = self.client.hmget(self.keys.job(job_id), ["id", "wire"])
            aside = self.client.get(self.keys.input(job_id))
        return records.job_input(_known(values, job_id)[1], aside)

    def revive(self, job_id: str) -> bool | None:
        with self.reported():
            code = self.scripts.run(Call("revive", [self.keys.job(job_id)], [job_id]))
        return None if code < 0 else code == 1

    def dead(self, limit: int) -> list[JobRecord]:
        found: list[JobRecord] = []
        with self.reported():
            for ids in self._newest(self.keys.dead):
                found += self._read_jobs(ids)
                if len(found) >= limit:
                    break
        return found[:limit]

    def last_words(self, job_id: str) -> str:
        with self.reported():
            values = self.client.hmget(self.keys.job(job_id), ["id", "log"])
        return _known(values, job_id)[1] or ""

    def purge(self, job_ids: Sequence[str]) -> int:
        parts = [job_ids[start : start + _SLICE] for start in range(0, len(job_ids), _SLICE)]
        with self.reported():
            return sum(self.scripts.run(Call("purge", [self.keys.dead], part)) for part in parts)

    def input_key(self, job_id: str) -> str:
        return self.keys.input(job_id)

    def workers(self) -> list[WorkerRecord]:
        with self.reported():
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


def enqueue_call(keys: Keys, packed: Packed, *, adopt: bool = False) -> Call:
    """The call that accepts a job.

    Args:
        adopt: its message was in the queue without it, and has been taken.
    """
    envelope = packed.envelope
    given = {
        "key": envelope.key,
        "deadline": envelope.deadline,
        "not_before": envelope.not_before,
        "items": packed.items,
        "batch": envelope.batch,
        "sig": packed.signature,
        "input": packed.aside,
        "next": 1 if envelope.then or envelope.join else None,
        "adopt": 1 if adopt else None,
    }
    options = [part for pair in given.items() if pair[1] is not None for part in pair]
    return Call(
        "enqueue",
        [keys.job(envelope.id)],
        [
            envelope.id,
            packed.wire,
            envelope.job_class,
            envelope.tenant,
            envelope.task,
            *options,
        ],
    )


def accepted(reply: Sequence[str], packed: Packed) -> str:
    """The id in a reply to `enqueue_call`.

    Raises:
        QueueFull: the job was refused for now.
        InvalidInput: it was refused for good.
        JobCancelled: its batch was cancelled.
    """
    verdict, what, *more = reply
    if verdict in ("accepted", "known"):
        return what
    if verdict == "invalid":
        raise InvalidInput(f"The job for task {packed.envelope.task!r} has a malformed {what}.")
    if verdict == "cancelled":
        raise JobCancelled(f"Batch {what} was cancelled.")
    seconds = float(more[0])
    if verdict == "memory":
        message = f"The queue takes no more jobs: {what} % of the server's memory is in use."
    else:
        kind, _, tenant = what.partition("/")
        whose = f" of tenant {tenant!r}" if tenant else ""
        message = f"Too many {kind} jobs{whose} wait already."
    raise QueueFull(message, retry_after=seconds, hint=f"Try again in {seconds:g} seconds.")


def items_calls(
    keys: Keys,
    batch_id: str,
    endings: Mapping[int, Ending],
    ttl: int,
    *,
    job_id: str = "",
    fence: str = "",
) -> list[Call]:
    """The calls that record the ends of a batch's items.

    Args:
        job_id: of the message that carries them.
        fence: of its claim; empty to record them whoever runs them.
    """
    names = [name(batch_id) for name in (keys.batch, keys.results, keys.stream)]
    numbers = list(endings)
    calls = []
    for start in range(0, len(numbers), _SLICE):
        arguments: list[Any] = [ttl, job_id, fence, batch_id]
        for number in numbers[start : start + _SLICE]:
            ending = endings[number]
            arguments += [number, "done" if ending.result.ok else "failed", ending.text]
        calls.append(Call("items", names, arguments))
    return calls


def _flat(entries: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    # RESP3 replies nest the entries of each stream once more.
    for entry in entries:
        if isinstance(entry, list):
            yield from _flat(entry)
        else:
            yield entry


def _known(values: Sequence[str | None], job_or_batch_id: str) -> Sequence[str | None]:
    if values[0] is None:
        raise _not_found(job_or_batch_id)
    return values


def _not_found(job_or_batch_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no {'batch' if job_or_batch_id.startswith('batch_') else 'job'} "
        f"{job_or_batch_id!r}, or its record has expired.",
        hint="`gptflow jobs list` shows the newest jobs.",
    )
