"""MemoryStore: the records in this process, with the rules of the Lua scripts."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from gptflow.envelope import Envelope
from gptflow.errors import InvalidInput, JobNotFound
from gptflow.queue import records
from gptflow.queue.payload import Packed
from gptflow.queue.records import Claim
from gptflow.queue.store import LISTED, Refusal, Store
from gptflow.result import TERMINAL, Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

_Key = tuple[str, str, str]
"""Tenant, task and idempotency key."""


@dataclasses.dataclass(slots=True)
class _Entry:
    record: JobRecord
    key: _Key | None = None
    attempt: int = 0
    result: str | None = None
    aside: str | None = None
    events: list[Event] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class _Batch:
    record: BatchRecord
    members: set[str] = dataclasses.field(default_factory=set)
    items: dict[int, str] = dataclasses.field(default_factory=dict)  # in the order they ended in


class MemoryStore(Store):
    """Records that live as long as this object; the oldest give way to new ones.

    A job takes its input, its events and its key with it; the last job of a batch, the batch.

    Args:
        publish: called with the JSON of each envelope that is to run.
        announce: called with the id of each job that was cancelled.
    """

    def __init__(self, publish: Callable[[str], None], announce: Callable[[str], None]) -> None:
        self._publish = publish
        self._announce = announce
        self._changed = threading.Condition()  # guards what follows
        self._jobs: dict[str, _Entry] = {}
        self._keys: dict[_Key, str] = {}
        self._batches: dict[str, _Batch] = {}
        self._numbers = itertools.count(1)

    # What callers use.

    def submit(self, packed: Packed) -> str:
        envelope = packed.envelope
        key = None
        with self._changed:
            if envelope.key is not None:
                key = (envelope.tenant, envelope.task, envelope.key)
                if (earlier := self._keys.get(key)) is not None:
                    return earlier
                self._keys[key] = envelope.id
            self._add(packed, key)
        self._publish(packed.wire)
        return envelope.id

    def open_batch(self, record: BatchRecord) -> None:
        with self._changed:
            self._batches[record.id] = _Batch(record)

    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        with self._changed:
            self._batch(batch_id).members.update(chunk.envelope.id for chunk in chunks)
            for chunk in chunks:
                self._add(chunk)
        for chunk in chunks:
            self._publish(chunk.wire)

    def _add(self, packed: Packed, key: _Key | None = None) -> None:
        record = records.new_job(packed.envelope, time.time(), packed.items)
        self._jobs[record.id] = _Entry(record, key=key, aside=packed.aside)
        if len(self._jobs) > LISTED:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = next((i for i, e in self._jobs.items() if e.record.state in TERMINAL), None)
        if oldest is None:
            return
        entry = self._jobs.pop(oldest)
        if entry.key is not None:
            del self._keys[entry.key]
        if (batch_id := entry.record.batch) in self._batches:
            members = self._batches[batch_id].members
            members.discard(oldest)
            if not members:
                del self._batches[batch_id]

    def job(self, job_id: str) -> JobRecord:
        with self._changed:
            return self._entry(job_id).record

    def jobs(self, state: State | None, limit: int) -> list[JobRecord]:
        with self._changed:
            newest = [entry.record for entry in reversed(self._jobs.values())]
        return [record for record in newest if state in (None, record.state)][:limit]

    def result(self, job_id: str) -> Result | None:
        with self._changed:
            text = self._entry(job_id).result
        return None if text is None else records.decode(text)

    def read_events(self, job_id: str, after: str, block: float) -> list[Event]:
        def newer() -> list[Event]:
            entry = self._jobs.get(job_id)
            return [event for event in entry.events if _place(event.id) > place] if entry else []

        place = _place(after)
        with self._changed:
            self._changed.wait_for(newer, block)
            return newer()

    def batch(self, batch_id: str) -> BatchRecord:
        with self._changed:
            return self._batch(batch_id).record

    def members(self, batch_id: str) -> set[str]:
        with self._changed:
            return set(self._batch(batch_id).members)

    def ended_items(self, batch_id: str) -> set[int]:
        with self._changed:
            return set(self._batch(batch_id).items)

    def read_items(self, batch_id: str, after: str, block: float) -> tuple[str, list[int]]:
        place = int(_place(after))
        with self._changed:
            items = self._batch(batch_id).items
            self._changed.wait_for(lambda: len(items) > place, block)
            numbers = list(itertools.islice(items, place, None))
        return str(place + len(numbers)), numbers

    def item_results(self, batch_id: str, numbers: Sequence[int]) -> dict[int, Result]:
        with self._changed:
            items = self._batch(batch_id).items
            texts = {number: items[number] for number in numbers if number in items}
        return {number: records.decode(text) for number, text in texts.items()}

    def end(self, result: Result, *, announce: bool = False) -> bool | None:
        with self._changed:
            if result.id not in self._jobs:
                return None
            ended = self._end(self._jobs[result.id], result)
        if ended and announce:
            self._announce(result.id)
        return ended

    def mark_batch_cancelled(self, batch_id: str) -> None:
        with self._changed:
            batch = self._batch(batch_id)
            batch.record = dataclasses.replace(batch.record, cancelled=True)

    # What workers use.

    def claim(self, envelope: Envelope, worker: str, delivery: int) -> Claim | Refusal:
        now = time.time()
        with self._changed:
            entry = self._jobs.get(envelope.id)
            if entry is None:
                entry = self._jobs[envelope.id] = _Entry(records.new_job(envelope, now))
            state = entry.record.state
            if state != "queued":
                return "busy" if state == "running" else state
            if envelope.deadline is not None and envelope.deadline <= now:
                return "late"
            entry.attempt += 1
            entry.record = dataclasses.replace(
                entry.record, state="running", worker=worker, started=now
            )
            return Claim(fence=entry.attempt, submitted=entry.record.submitted or now)

    def finish(self, claim: Claim, result: Result) -> bool:
        with self._changed:
            entry = self._jobs.get(result.id)
            return (
                entry is not None
                and entry.attempt == claim.fence
                and (self._end(entry, result, claimed=True))
            )

    def _end(self, entry: _Entry, result: Result, *, claimed: bool = False) -> bool:
        if entry.record.state in TERMINAL:
            return False
        entry.result = records.encode(result)
        entry.record = dataclasses.replace(entry.record, state=result.state, finished=time.time())
        if claimed or entry.record.batch is None:
            entry.aside = None
        entry.events.append(Event(id=self._next_id(), kind="end"))
        self._changed.notify_all()
        return True

    def finish_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        texts = {number: records.encode(result) for number, result in results.items()}
        with self._changed:
            batch = self._batches.get(batch_id)
            if batch is None:  # forgotten; nobody waits for it
                return
            for number, text in texts.items():
                if number not in batch.items:
                    batch.items[number] = text
                    done, record = results[number].ok, batch.record
                    batch.record = dataclasses.replace(
                        record, done=record.done + done, failed=record.failed + (not done)
                    )
            self._changed.notify_all()

    def append(self, events: Iterable[tuple[str, Event]]) -> None:
        with self._changed:
            for job_id, event in events:
                if (entry := self._jobs.get(job_id)) is not None:
                    entry.events.append(dataclasses.replace(event, id=self._next_id()))
            self._changed.notify_all()

    def load_aside(self, reference: str) -> str:
        with self._changed:
            entry = self._jobs.get(reference.removeprefix(self.input_key("")))
        if entry is None or entry.aside is None:
            raise InvalidInput("The input that the job refers to does not exist.")
        return entry.aside

    def delay(self, packed: Packed) -> None:
        wait = (packed.envelope.not_before or 0.0) - time.time()
        timer = threading.Timer(max(0.0, wait), self._publish, (packed.wire,))
        timer.daemon = True
        timer.start()

    def input_key(self, job_id: str) -> str:
        return f"input:{job_id}"

    def workers(self) -> list[WorkerRecord]:
        return []

    def close(self) -> None:
        pass

    def _entry(self, job_id: str) -> _Entry:
        if (entry := self._jobs.get(job_id)) is None:
            raise JobNotFound(f"There is no job {job_id!r} in this process.")
        return entry

    def _batch(self, batch_id: str) -> _Batch:
        if (batch := self._batches.get(batch_id)) is None:
            raise JobNotFound(f"There is no batch {batch_id!r} in this process.")
        return batch

    def _next_id(self) -> str:
        return str(next(self._numbers))


def _place(entry: str) -> int:
    if not entry.isdecimal():
        raise InvalidInput(f"{entry!r} is not an event's id.")
    return int(entry)
