"""StoreTransport: what a client needs of a queue, on top of a store.

Waiting is reading the job's stream with a time limit, and looking at the record again in
between: an event that got lost delays an answer by one such read and never hangs anybody. Who
has had an answer once goes on waiting while the server restarts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import BrokerUnavailable, ConfigError, GPTFlowError, JobNotFound, JobTimeout
from gptflow.number_set import NumberSet
from gptflow.queue import records
from gptflow.queue.following import Follower
from gptflow.queue.payload import Packed, pack
from gptflow.queue.signing import SETTING, Signer, chains_allowed
from gptflow.queue.store import BLOCK, Store
from gptflow.result import TERMINAL, Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

P = ParamSpec("P")
T = TypeVar("T")

_READ_AT_ONCE = 64
"""Results to have in memory at once, so that it takes no more for a large batch."""

_PATIENCE = 60.0
"""Seconds for which a server that has answered once may be silent."""

_PAUSE = 0.2
"""Seconds between two questions to a server that does not answer."""


class StoreTransport:
    """Implements `gptflow.transport.Transport` for any store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self._signer = Signer.of(settings)

    def submit(self, envelope: Envelope) -> str:
        return self.store.submit(self._pack(envelope))

    def submit_batch(self, record: BatchRecord, chunks: Sequence[Envelope]) -> None:
        # All are checked before the first is sent.
        packed = [self._pack(chunk) for chunk in chunks]
        self.store.open_batch(record)
        try:
            self.store.enqueue_batch(record.id, packed)
            self.store.seal_batch(record.id, record.total)
        except BaseException:  # a caller that is interrupted leaves no half of a batch either
            with contextlib.suppress(GPTFlowError):
                self._cancel_batch(record.id)
            raise

    def open_batch(self, record: BatchRecord) -> None:
        self.store.open_batch(record)

    def add_to_batch(self, batch_id: str, chunks: Sequence[Envelope]) -> None:
        self.store.enqueue_batch(batch_id, [self._pack(chunk) for chunk in chunks])

    def seal_batch(self, batch_id: str, total: int) -> None:
        self.store.seal_batch(batch_id, total)

    def _pack(self, envelope: Envelope) -> Packed:
        if (envelope.then or envelope.join) and not chains_allowed(self.settings):
            raise ConfigError(
                "Something is to follow the job, and chains of jobs that are not signed are off.",
                hint=f"Set GPTFLOW_SIGNING_KEY, or {SETTING}=1, here and for the workers.",
            )
        return pack(
            envelope,
            reference=self.store.input_key(envelope.id),
            inline=self.settings.inline_payload,
            limit=self.settings.max_payload,
            signer=self._signer,
        )

    def job(self, job_id: str) -> JobRecord:
        return self.store.job(job_id)

    def jobs(self, state: State | None = None, limit: int = 50) -> list[JobRecord]:
        return self.store.jobs(state, limit)

    def batch(self, batch_id: str) -> BatchRecord:
        return self.store.batch(batch_id)

    def result(self, job_id: str, timeout: float | None) -> Result:
        until = _Until(timeout)
        result = self.store.result(job_id)
        place = "0"
        while result is None:
            if until.passed:
                raise JobTimeout(
                    f"Job {job_id} did not end within {timeout:g} seconds.",
                    hint="It goes on; ask for its result again later.",
                )
            events = until.patiently(self.store.read_events, job_id, place, until.block)
            place = events[-1].id if events else place
            result = until.patiently(self.store.result, job_id)
        return result

    def events(self, job_id: str, after: str | None, timeout: float | None) -> Iterator[Event]:
        until = _Until(timeout)
        text = Follower(after)
        place = after or "0"
        record = self.store.job(job_id)
        while True:
            ended = record.state in TERMINAL
            block = 0.001 if ended else until.block
            events = until.patiently(self.store.read_events, job_id, place, block)
            for event in events:
                place = event.id
                yield from text.follow(event)
                if event.kind == "end":
                    return
            if not events and ended:
                # Whoever resumes after the end, or after the stream has expired, is told so.
                yield Event(id=place, kind="end")
                return
            if not events and until.passed:
                raise JobTimeout(f"The stream of job {job_id} did not end in {timeout:g} seconds.")
            record = until.patiently(self.store.job, job_id)

    def batch_results(
        self, batch_id: str, timeout: float | None, stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Result]]:
        store, record = self.store, self.store.batch(batch_id)
        seen = NumberSet()
        place = "0"
        until = _Until(timeout)
        while not (record.sealed and len(seen) >= record.total):
            if stop is not None and stop.is_set():
                return
            place, numbers = until.patiently(store.read_items, batch_id, place, until.block)
            if not numbers or len(seen) + len(numbers) >= record.total:
                record = until.patiently(store.batch, batch_id)  # raises once it has expired
            if not numbers and record.finished:
                # What the stream should have said and did not.
                numbers = sorted(until.patiently(store.ended_items, batch_id))
            fresh = [number for number in numbers if seen.add(number)]
            for start in range(0, len(fresh), _READ_AT_ONCE):
                part = fresh[start : start + _READ_AT_ONCE]
                yield from until.patiently(store.item_results, batch_id, part).items()
                until = _Until(timeout)
            if not fresh and until.passed:
                raise JobTimeout(
                    f"No item of batch {batch_id} ended for {timeout:g} seconds; "
                    f"{len(seen)} of {record.total} have.",
                    hint="It goes on; ask for its results again later.",
                )

    def ended_items(self, batch_id: str) -> NumberSet:
        self.store.batch(batch_id)
        ended = NumberSet()
        place, numbers = self.store.read_items(batch_id, "0", 0.001)
        while numbers:
            for number in numbers:
                ended.add(number)
            place, numbers = self.store.read_items(batch_id, place, 0.001)
        return ended

    def cancel(self, job_or_batch_id: str) -> bool:
        if job_or_batch_id.startswith("batch_"):
            return self._cancel_batch(job_or_batch_id)
        record = self.store.job(job_or_batch_id)
        ended = self.store.end(records.cancelled(record.id, record.task))
        if ended is None:
            raise JobNotFound(f"The record of job {record.id!r} has expired.")
        if ended and record.batch is not None:
            self._cancel_items(record.batch, record.task, self.store.message_items(record.id))
        return ended

    def _cancel_batch(self, batch_id: str) -> bool:
        record = self.store.batch(batch_id)
        if record.finished:
            return False
        stopped = not record.sealed
        # From here on no message is added, so those that there are now are all.
        self.store.seal_batch(batch_id, cancelled=True)
        for job_id in self.store.members(batch_id):
            stopped |= bool(self.store.end(records.cancelled(job_id, record.task)))
            # Also where it had ended: whoever cancelled it before may not have come this far.
            self._cancel_items(batch_id, record.task, self._items_left(job_id))
        return stopped

    def _items_left(self, job_id: str) -> dict[int, str]:
        with contextlib.suppress(JobNotFound):
            return self.store.message_items(job_id)
        return {}

    def _cancel_items(self, batch_id: str, task: str, items: Mapping[int, str]) -> None:
        results = {
            number: records.cancelled(records.item_id(batch_id, number), task, custom_id)
            for number, custom_id in items.items()
        }
        self.store.end_items(batch_id, results)

    def revive(self, job_id: str) -> bool:
        revived = self.store.revive(job_id)
        if revived is None:
            self.store.job(job_id)  # raises
        return bool(revived)

    def dead(self, limit: int = 50) -> list[JobRecord]:
        return self.store.dead(limit)

    def last_words(self, job_id: str) -> str:
        return self.store.last_words(job_id)

    def purge(self, job_ids: Sequence[str]) -> int:
        return self.store.purge(job_ids)

    def job_input(self, job_id: str) -> Any:
        return self.store.job_input(job_id)

    def workers(self) -> list[WorkerRecord]:
        """The workers that are ready, the longest-running first."""
        return self.store.workers()

    def close(self) -> None:
        self.store.close()


class _Until:
    """A time limit; None is none."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    @property
    def block(self) -> float:
        """Seconds that the next read may wait."""
        left = BLOCK if self._end is None else self._end - time.monotonic()
        return min(BLOCK, max(left, 0.001))

    def patiently(self, read: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Read from the store, again and again while it does not answer and there is time.

        Only for what comes after a first answer: a server that was there is coming back.

        Raises:
            BrokerUnavailable: it did not come back in `_PATIENCE` seconds, or in time.
        """
        silent = time.monotonic()
        while True:
            try:
                return read(*args, **kwargs)
            except BrokerUnavailable:
                if self.passed or time.monotonic() - silent > _PATIENCE:
                    raise
            time.sleep(min(_PAUSE, self.block))
