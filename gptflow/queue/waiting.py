"""StoreTransport: what a client needs of a queue, on top of a store.

Waiting is reading the job's stream with a time limit, and looking at the record again in
between: an event that got lost delays an answer by one such read and never hangs anybody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import ConfigError, GPTFlowError, JobNotFound, JobTimeout
from gptflow.queue import records
from gptflow.queue.payload import Packed, pack
from gptflow.queue.signing import SETTING, Signer, chains_allowed
from gptflow.queue.store import BLOCK, Store
from gptflow.result import TERMINAL, Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

_CANCELLED_AT_ONCE = 500


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
        except BaseException:  # a caller that is interrupted leaves no half of a batch either
            with contextlib.suppress(GPTFlowError):
                self._cancel_batch(record.id)
            raise

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
        place = "0"
        while (result := self.store.result(job_id)) is None:
            if until.passed:
                raise JobTimeout(
                    f"Job {job_id} did not end within {timeout:g} seconds.",
                    hint="It goes on; ask for its result again later.",
                )
            events = self.store.read_events(job_id, place, until.block)
            place = events[-1].id if events else place
        return result

    def events(self, job_id: str, after: str | None, timeout: float | None) -> Iterator[Event]:
        until = _Until(timeout)
        place = after or "0"
        while True:
            ended = self.store.job(job_id).state in TERMINAL
            events = self.store.read_events(job_id, place, 0.001 if ended else until.block)
            for event in events:
                yield event
                if event.kind == "end":
                    return
                place = event.id
            if not events and ended:
                # Whoever resumes after the end, or after the stream has expired, is told so.
                yield Event(id=place, kind="end")
                return
            if not events and until.passed:
                raise JobTimeout(f"The stream of job {job_id} did not end in {timeout:g} seconds.")

    def batch_results(self, batch_id: str, timeout: float | None) -> Iterator[tuple[int, Result]]:
        total = self.store.batch(batch_id).total
        seen: set[int] = set()
        place = "0"
        until = _Until(timeout)
        while len(seen) < total:
            place, numbers = self.store.read_items(batch_id, place, until.block)
            if not numbers:
                numbers = sorted(self.store.ended_items(batch_id))
            fresh = [number for number in dict.fromkeys(numbers) if number not in seen]
            if fresh:
                seen.update(fresh)
                yield from self.store.item_results(batch_id, fresh).items()
                until = _Until(timeout)
            elif until.passed:
                raise JobTimeout(
                    f"No item of batch {batch_id} ended for {timeout:g} seconds; "
                    f"{len(seen)} of {total} have.",
                    hint="It goes on; ask for its results again later.",
                )
            else:
                self.store.batch(batch_id)  # raises once the records have expired

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
        self.store.mark_batch_cancelled(batch_id)
        # Counted first: once it is told to stop, a worker records the rest at any moment.
        stopped = len(self.store.ended_items(batch_id)) < record.total
        for job_id in self.store.members(batch_id):
            self.store.end(records.cancelled(job_id, record.task))
        left = sorted(set(range(record.total)) - self.store.ended_items(batch_id))
        self._cancel_items(batch_id, record.task, left)
        return stopped

    def _cancel_items(self, batch_id: str, task: str, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _CANCELLED_AT_ONCE):
            part = numbers[start : start + _CANCELLED_AT_ONCE]
            ids = {number: records.item_id(batch_id, number) for number in part}
            results = {number: records.cancelled(ids[number], task) for number in part}
            self.store.end_items(batch_id, results)

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
