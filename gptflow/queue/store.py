"""Store: the records of jobs and batches, behind one interface for Redis and for memory."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from gptflow.envelope import Envelope
from gptflow.queue.payload import Packed
from gptflow.queue.records import Claim
from gptflow.result import Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

LISTED = 10_000
"""How many jobs a listing can go back."""

STREAM_LENGTH = 10_000
"""Entries of one job's stream to keep, about."""

BLOCK = 2.0
"""Seconds that one blocking read waits at most; it must stay below Redis's socket timeout."""

Refusal = Literal["busy", "late", "done", "failed", "cancelled", "expired", "dead"]
"""Why a job cannot be claimed: it runs elsewhere, its deadline has passed, or it has ended."""


class Store(abc.ABC):
    """Where jobs are recorded. Thread-safe; every call may raise `BrokerUnavailable`.

    A job goes `queued -> running -> done | failed | cancelled | expired`, and the first end
    that is recorded stands.
    """

    # What callers use.

    @abc.abstractmethod
    def submit(self, packed: Packed) -> str:
        """Record and enqueue a job.

        Returns:
            Its id, or that of an earlier job of the same key, tenant and task.
        """

    @abc.abstractmethod
    def open_batch(self, record: BatchRecord) -> None:
        """Record a batch, before the first of its messages."""

    @abc.abstractmethod
    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        """Record and enqueue the messages of a batch. Where this raises, some may be queued."""

    @abc.abstractmethod
    def job(self, job_id: str) -> JobRecord:
        """Raises `JobNotFound`."""

    @abc.abstractmethod
    def jobs(self, state: State | None, limit: int) -> list[JobRecord]:
        """The newest jobs first."""

    @abc.abstractmethod
    def result(self, job_id: str) -> Result | None:
        """The result, None while there is none. Raises `JobNotFound`."""

    @abc.abstractmethod
    def read_events(self, job_id: str, after: str, block: float) -> list[Event]:
        """The stream's entries after the one named; waits up to `block` seconds for one."""

    @abc.abstractmethod
    def batch(self, batch_id: str) -> BatchRecord:
        """Raises `JobNotFound`."""

    @abc.abstractmethod
    def members(self, batch_id: str) -> set[str]:
        """The ids of the jobs that carry the batch's items."""

    @abc.abstractmethod
    def ended_items(self, batch_id: str) -> set[int]:
        """The numbers of the items that have a result."""

    @abc.abstractmethod
    def read_items(self, batch_id: str, after: str, block: float) -> tuple[str, list[int]]:
        """The numbers of items that ended after the place named, and the new place."""

    @abc.abstractmethod
    def item_results(self, batch_id: str, numbers: Sequence[int]) -> dict[int, Result]:
        """The results of some items; those that have none are left out."""

    @abc.abstractmethod
    def end(self, result: Result, *, announce: bool = False) -> bool | None:
        """End a job, whoever runs it. False if it had ended; None if there is no such job.

        Args:
            announce: tell the workers, so that whoever runs it stops.
        """

    @abc.abstractmethod
    def mark_batch_cancelled(self, batch_id: str) -> None: ...

    # What workers use.

    @abc.abstractmethod
    def claim(self, envelope: Envelope, worker: str, delivery: int) -> Claim | Refusal:
        """Take a job to run it.

        Args:
            delivery: of the message, a number within the worker. Claiming again for the same
                delivery gives the same claim, so a call whose reply was lost can be repeated.
        """

    @abc.abstractmethod
    def finish(self, claim: Claim, result: Result) -> bool:
        """Record the end of a claimed job. False: it had ended, or somebody else runs it."""

    @abc.abstractmethod
    def finish_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        """Record the ends of items; those that had ended keep their first result."""

    @abc.abstractmethod
    def append(self, events: Iterable[tuple[str, Event]]) -> None:
        """Add entries to jobs' streams, in order; their ids are given by the store."""

    @abc.abstractmethod
    def load_aside(self, reference: str) -> str:
        """The JSON of an input that is kept aside. Raises `InvalidInput`."""

    @abc.abstractmethod
    def delay(self, packed: Packed) -> None:
        """Enqueue a message again when its `not_before` has come."""

    @abc.abstractmethod
    def input_key(self, job_id: str) -> str:
        """Under what name a large input is kept aside."""

    @abc.abstractmethod
    def workers(self) -> list[WorkerRecord]:
        """The live workers, the longest-running first."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back connections."""
