"""MemoryStore: the records in this process, with the rules of the Lua scripts.

There is no lease: nothing but this process can run its jobs, and they die with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptflow.errors import InvalidInput, JobCancelled, JobNotFound
from gptflow.queue import records
from gptflow.queue.ledger import Claim, Ledger, Piece, Refusal
from gptflow.queue.payload import Packed
from gptflow.queue.records import Ending
from gptflow.queue.store import LISTED, Store
from gptflow.result import TERMINAL, Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

_Key = tuple[str, str, str]
"""Tenant, task and idempotency key."""


@dataclasses.dataclass(slots=True)
class _Entry:
    record: JobRecord
    packed: Packed
    key: _Key | None = None
    aside: str | None = None
    revived: bool = False
    fence: int = 0
    delivery: int = 0
    result: str | None = None
    events: list[Event] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class _Batch:
    record: BatchRecord
    members: set[str] = dataclasses.field(default_factory=set)
    items: dict[int, str] = dataclasses.field(default_factory=dict)
    order: list[int | None] = dataclasses.field(default_factory=list)
    """The items in the order they ended in, and None for when the batch was sealed."""


class MemoryStore(Store, Ledger):
    """Records that live as long as this object; the oldest give way to new ones.

    A job takes its input, its events and its key with it; the last job of a batch, the batch.

    Args:
        publish: called with the id of each job that is to run.
        announce: called with the id of each running job that was cancelled.
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
        if envelope.then or envelope.join:
            raise InvalidInput("Nothing can follow a job of memory://; chains need a server.")
        with self._changed:
            if (earlier := self._add(packed)) is not None:
                return earlier
        self._publish_at(envelope.id, envelope.not_before or 0.0)
        return envelope.id

    def open_batch(self, record: BatchRecord) -> None:
        with self._changed:
            opened = dataclasses.replace(record, total=0, sealed=False)
            self._batches[record.id] = _Batch(opened)

    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        added = []
        with self._changed:
            batch = self._batch(batch_id)
            for chunk in chunks:
                record, job_id = batch.record, chunk.envelope.id
                if record.cancelled:
                    raise JobCancelled(f"Batch {batch_id} was cancelled.")
                batch.members.add(job_id)
                if self._add(chunk) is not None:
                    batch.members.discard(job_id)
                    continue
                added.append(job_id)
                if not record.sealed:
                    total = record.total + (chunk.items or 0)
                    batch.record = dataclasses.replace(record, total=total)
        for job_id in added:
            self._publish(job_id)

    def seal_batch(
        self, batch_id: str, total: int | None = None, *, cancelled: bool = False
    ) -> None:
        with self._changed:
            batch = self._batch(batch_id)
            record = batch.record
            if not record.sealed:
                if total is None or record.cancelled:
                    total = record.total
                batch.record = dataclasses.replace(record, total=total, sealed=True)
                batch.order.append(None)
            if cancelled:
                batch.record = dataclasses.replace(batch.record, cancelled=True)
            self._changed.notify_all()

    def _publish_at(self, job_id: str, moment: float) -> None:
        wait = moment - time.time()
        if wait <= 0:
            self._publish(job_id)
            return
        timer = threading.Timer(wait, self._publish, (job_id,))
        timer.daemon = True
        timer.start()

    def _add(self, packed: Packed) -> str | None:
        """Record a job. Where its key was used before, returns that job's id instead."""
        envelope, key = packed.envelope, None
        if envelope.key is not None:
            key = (envelope.tenant, envelope.task, envelope.key)
            if (earlier := self._keys.get(key)) is not None:
                return earlier
            self._keys[key] = envelope.id
        record = records.new_job(envelope, time.time(), packed.items)
        self._jobs[record.id] = _Entry(record, packed, key=key, aside=packed.aside)
        if len(self._jobs) > LISTED:
            self._forget_oldest()
        return None

    def _forget_oldest(self) -> None:
        oldest = next((i for i, e in self._jobs.items() if e.record.state in TERMINAL), None)
        if oldest is not None:
            self._forget(oldest)

    def _forget(self, job_id: str) -> None:
        entry = self._jobs.pop(job_id)
        if entry.key is not None:
            del self._keys[entry.key]
        if (batch_id := entry.record.batch) in self._batches:
            batch = self._batches[batch_id]
            batch.members.discard(job_id)
            if not batch.members and batch.record.sealed:
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
            order = self._batch(batch_id).order
            self._changed.wait_for(lambda: len(order) > place, block)
            fresh = order[place:]
        return str(place + len(fresh)), [number for number in fresh if number is not None]

    def item_results(self, batch_id: str, numbers: Sequence[int]) -> dict[int, Result]:
        with self._changed:
            items = self._batch(batch_id).items
            texts = {number: items[number] for number in numbers if number in items}
        return {number: records.decode(text) for number, text in texts.items()}

    def end(self, result: Result) -> bool | None:
        with self._changed:
            if (entry := self._jobs.get(result.id)) is None:
                return None
            running = entry.record.state == "running"
            ended = self._end(entry, Ending.of(result))
        if ended and running:
            self._announce(result.id)
        return ended

    def end_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        endings = {number: Ending.of(result) for number, result in results.items()}
        with self._changed:
            self._end_items(batch_id, endings)

    def message_items(self, job_id: str) -> dict[int, str]:
        with self._changed:
            entry = self._entry(job_id)
            return records.item_names(entry.packed.wire, entry.aside)

    def job_input(self, job_id: str) -> Any:
        with self._changed:
            entry = self._entry(job_id)
            return records.job_input(entry.packed.wire, entry.aside)

    def revive(self, job_id: str) -> bool | None:
        with self._changed:
            if (entry := self._jobs.get(job_id)) is None:
                return None
            record = entry.record
            if record.state not in ("failed", "expired", "dead") or record.items is not None:
                return False
            entry.record = dataclasses.replace(
                record, state="queued", started=None, finished=None, attempt=0, crashes=0
            )
            entry.result, entry.revived = None, True
            entry.events.clear()
        self._publish(job_id)
        return True

    def dead(self, limit: int) -> list[JobRecord]:
        return self.jobs("dead", limit)

    def last_words(self, job_id: str) -> str:
        self.job(job_id)
        return ""

    def purge(self, job_ids: Sequence[str]) -> int:
        with self._changed:
            dead = [i for i in job_ids if i in self._jobs and self._jobs[i].record.state == "dead"]
            for job_id in dead:
                self._forget(job_id)
        return len(dead)

    # What workers use.

    def adopt(self, packed: Packed) -> str | None:
        raise AssertionError("nobody else can put messages into this process")

    def claim(self, job_id: str, worker: str, delivery: int) -> Claim | Refusal:
        with self._changed:
            if (entry := self._jobs.get(job_id)) is None:
                return "gone"
            record, envelope, now = entry.record, entry.packed.envelope, time.time()
            deadline = None if entry.revived else envelope.deadline
            if record.state == "running" and entry.delivery != delivery:
                return "busy"
            if record.state in TERMINAL:
                return record.state  # type: ignore[return-value]
            if record.state == "queued":
                entry.fence += 1
                entry.delivery = delivery
                entry.record = dataclasses.replace(
                    record,
                    state="running",
                    worker=worker,
                    started=now,
                    attempt=record.attempt + 1,
                )
            return Claim(
                job_id=job_id,
                fence=entry.fence,
                attempt=entry.record.attempt,
                submitted=record.submitted or now,
                task=record.task,
                wire=entry.packed.wire,
                signature=entry.packed.signature,
                revived=entry.revived,
                late=deadline is not None and deadline <= now,
            )

    def finish(self, claim: Claim, ending: Ending) -> bool:
        with self._changed:
            return self._holds(claim) and self._end(self._jobs[claim.job_id], ending)

    def release(self, claim: Claim, *, wait: float, counts: bool) -> bool:
        with self._changed:
            if not self._holds(claim):
                return False
            entry = self._jobs[claim.job_id]
            attempt = entry.record.attempt - (not counts)
            entry.record = dataclasses.replace(entry.record, state="queued", attempt=attempt)
        self._publish_at(claim.job_id, time.time() + wait if wait else 0.0)
        return True

    def give_up(self, job_id: str) -> None:
        pass  # there is nobody else

    def _holds(self, claim: Claim) -> bool:
        entry = self._jobs.get(claim.job_id)
        return entry is not None and entry.record.state == "running" and entry.fence == claim.fence

    def _end(self, entry: _Entry, ending: Ending) -> bool:
        if entry.record.state in TERMINAL:
            return False
        result = ending.result
        entry.result = ending.text
        entry.record = dataclasses.replace(entry.record, state=result.state, finished=time.time())
        if result.state == "done" or (result.state == "cancelled" and entry.record.items is None):
            entry.aside = None
        entry.events.append(Event(id=self._next_id(), kind="end"))
        self._changed.notify_all()
        return True

    def finish_items(self, batch_id: str, endings: Mapping[int, Ending], claim: Claim) -> bool:
        with self._changed:
            holds = self._holds(claim)
            if holds:
                self._end_items(batch_id, endings)
        return holds

    def _end_items(self, batch_id: str, endings: Mapping[int, Ending]) -> None:
        batch = self._batches.get(batch_id)
        if batch is None:  # forgotten; nobody waits for it
            return
        for number, ending in endings.items():
            if number not in batch.items:
                batch.items[number] = ending.text
                batch.order.append(number)
                done, record = ending.result.ok, batch.record
                batch.record = dataclasses.replace(
                    record, done=record.done + done, failed=record.failed + (not done)
                )
        self._changed.notify_all()

    def mark(self, claim: Claim, item: int) -> None:
        pass  # nobody is left to read it

    def append(self, pieces: Sequence[Piece]) -> None:
        with self._changed:
            for claim, event in ((piece.claim, piece.event) for piece in pieces):
                if self._holds(claim):
                    event = dataclasses.replace(event, id=self._next_id())
                    self._jobs[claim.job_id].events.append(event)
            self._changed.notify_all()

    def refuse(self, result: Result, *, code: str = "") -> bool:
        return False  # there is no way to a worker past `submit`

    def load_aside(self, job_id: str, most: int) -> str:
        with self._changed:
            entry = self._jobs.get(job_id)
        if entry is None or entry.aside is None:
            raise InvalidInput("The input that the job refers to does not exist.")
        return entry.aside

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
