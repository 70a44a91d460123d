"""Ledger: what a worker does with the records of jobs, behind one interface for Redis and memory.

A job goes `queued -> running -> done | failed | cancelled | expired | dead`. Whoever takes a
queued job holds a claim on it; of a job's claims only the latest counts, so what a worker says
that was taken for dead is refused.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from gptflow.queue.payload import Packed
from gptflow.queue.records import Ending
from gptflow.result import Result
from gptflow.transport import Event

Refusal = Literal["busy", "gone", "done", "failed", "cancelled", "expired", "dead"]
"""Why a job cannot be claimed: it runs or must wait, has no record, or has ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's right to run a job.

    Attributes:
        fence: grows with each claim; what is said under an older one is refused.
        attempt: the how many-th this is, counting from 1. Neither crashes nor hand-backs count.
        crashes: how often its worker died while it ran. From 2 on it must run alone.
        submitted: Unix seconds.
        task: its name.
        wire: the envelope as JSON.
        signature: of `wire`, where it was signed.
        at: the item that the last claim was marked with; see `Ledger.mark`.
        revived: it was enqueued again by hand, so its envelope's deadline holds no more.
        late: its deadline has passed; all that is left is to say so.
    """

    job_id: str
    fence: int = 1
    attempt: int = 1
    crashes: int = 0
    submitted: float = 0.0
    task: str = ""
    wire: str = ""
    signature: str | None = None
    at: int | None = None
    revived: bool = False
    late: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """An event of a claimed job's stream."""

    claim: Claim
    event: Event


class Ledger(abc.ABC):
    """What a worker needs. Thread-safe; every call may raise `BrokerUnavailable`."""

    @abc.abstractmethod
    def adopt(self, packed: Packed) -> str | None:
        """Record a job whose message came without a record, past `Store.submit`.

        Returns:
            The id to claim; None where its idempotency key is an earlier job's.
        """

    @abc.abstractmethod
    def claim(self, job_id: str, worker: str, delivery: int) -> Claim | Refusal:
        """Take a job to run it.

        Args:
            delivery: of the doorbell, a number within the worker. Claiming again for the same
                delivery gives the same claim, so a call whose reply was lost can be repeated.
        """

    @abc.abstractmethod
    def finish(self, claim: Claim, ending: Ending) -> bool:
        """Record the end of a claimed job. False: it had ended, or somebody else runs it."""

    @abc.abstractmethod
    def release(self, claim: Claim, *, wait: float, counts: bool) -> bool:
        """Give a claimed job back to be run again, here or elsewhere.

        Args:
            wait: seconds for which it is not to be run.
            counts: whether this was an attempt.

        Returns:
            False: it had ended, or somebody else runs it.
        """

    @abc.abstractmethod
    def give_up(self, job_id: str) -> None:
        """Say that a doorbell was taken and will not be answered here."""

    @abc.abstractmethod
    def finish_items(self, batch_id: str, endings: Mapping[int, Ending], claim: Claim) -> bool:
        """Record the ends of items; those that had ended keep their first result.

        Args:
            claim: of the message that carries them.

        Returns:
            False: somebody else runs them, and nothing was recorded.
        """

    @abc.abstractmethod
    def mark(self, claim: Claim, item: int) -> None:
        """Note which item is about to run, for whoever claims the message after a crash."""

    @abc.abstractmethod
    def ended_items(self, batch_id: str) -> set[int]:
        """The numbers of the items that have a result."""

    @abc.abstractmethod
    def append(self, pieces: Sequence[Piece]) -> None:
        """Add entries to streams, in order; those of claims that no longer count are dropped."""

    @abc.abstractmethod
    def refuse(self, result: Result, *, code: str = "") -> bool:
        """Record the end of a job that was never accepted, unless there is a record of it.

        Args:
            code: of the error, for a message that cannot be read as a job.
        """

    @abc.abstractmethod
    def load_aside(self, job_id: str, most: int) -> str:
        """The JSON of a job's input that is kept aside.

        Args:
            most: characters that it may have.

        Raises:
            InvalidInput: there is none, or it is too long.
        """
