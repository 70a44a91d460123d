"""Store: what callers do with the records of jobs and batches, for Redis and for memory."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from gptflow.queue.payload import Packed
from gptflow.result import Result, State
from gptflow.transport import BatchRecord, Event, JobRecord, WorkerRecord

LISTED = 10_000
"""How many jobs a listing can go back."""

STREAM_LENGTH = 10_000
"""Entries of one job's stream to keep, about."""

BLOCK = 2.0
"""Seconds that one blocking read waits at most; it must stay below Redis's socket timeout."""


class Store(abc.ABC):
    """Where jobs are recorded. Thread-safe; every call may raise `BrokerUnavailable`.

    The states and what workers do with them: see `gptflow.queue.ledger`.
    """

    @abc.abstractmethod
    def submit(self, packed: Packed) -> str:
        """Record and enqueue a job.

        Returns:
            Its id, or that of an earlier job of the same key, tenant and task.

        Raises:
            QueueFull: its class or tenant has too many waiting, or the server's memory is used up.
        """

    @abc.abstractmethod
    def open_batch(self, record: BatchRecord) -> None:
        """Record a batch, before the first of its messages. Its total counts what is added."""

    @abc.abstractmethod
    def enqueue_batch(self, batch_id: str, chunks: Sequence[Packed]) -> None:
        """Record and enqueue messages of a batch. Where this raises, some may be queued.

        Raises:
            QueueFull: as for `submit`.
            JobCancelled: the batch was cancelled.
        """

    @abc.abstractmethod
    def seal_batch(
        self, batch_id: str, total: int | None = None, *, cancelled: bool = False
    ) -> None:
        """Say that a batch gets no more messages.

        Args:
            total: its items; by default those that were added.
            cancelled: whether that is so because it was cancelled.
        """

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
    def end(self, result: Result) -> bool | None:
        """End a job, whoever runs it. False if it had ended; None if there is no such job."""

    @abc.abstractmethod
    def end_items(self, batch_id: str, results: Mapping[int, Result]) -> None:
        """End items of a batch, whoever runs them; those that had ended keep their result."""

    @abc.abstractmethod
    def message_items(self, job_id: str) -> dict[int, str]:
        """The items that a message of a batch carries, until it is done: number to custom id."""

    @abc.abstractmethod
    def job_input(self, job_id: str) -> Any:
        """The input of a job, None where it is gone. Raises `JobNotFound`."""

    @abc.abstractmethod
    def revive(self, job_id: str) -> bool | None:
        """Enqueue a failed, expired or dead job once more. False if it is none; None if unknown."""

    @abc.abstractmethod
    def dead(self, limit: int) -> list[JobRecord]:
        """The jobs that are dead, the newest first."""

    @abc.abstractmethod
    def last_words(self, job_id: str) -> str:
        """What the worker that died last of a dead job had logged; empty where nothing is known."""

    @abc.abstractmethod
    def purge(self, job_ids: Sequence[str]) -> int:
        """Forget dead jobs. Returns how many there were."""

    @abc.abstractmethod
    def input_key(self, job_id: str) -> str:
        """Under what name a large input is kept aside."""

    @abc.abstractmethod
    def workers(self) -> list[WorkerRecord]:
        """The live workers, the longest-running first."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back connections."""
