"""Dispatcher: takes a message, claims its job, has it run, and records how it ended.

Each message has a thread that waits here; the jobs themselves share the runtime's event loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gptflow.config import Settings
from gptflow.envelope import Envelope, Item
from gptflow.errors import (
    BrokerUnavailable,
    EngineStopped,
    GPTFlowError,
    InvalidInput,
    JobDead,
    JobFailed,
    JobTimeout,
    UntrustedMessage,
)
from gptflow.queue import records
from gptflow.queue.deltas import DeltaWriter
from gptflow.queue.handle import Handle
from gptflow.queue.ledger import Claim, Ledger
from gptflow.queue.reader import Reader, is_id, names_of
from gptflow.queue.records import Ending
from gptflow.queue.runtime import Ended, Runtime
from gptflow.queue.tallies import UNKNOWN, Tallies
from gptflow.result import Result, from_info

if TYPE_CHECKING:
    from gptflow.queue.follow import Follower

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = 60.0
"""Seconds for which a record is kept in memory while Redis does not answer."""

ALONE_AFTER = 2
"""Crashes after which a job runs alone; the ledger's scripts say the same."""

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
"""Seconds before a job is tried again; they double with each attempt."""


class Dispatcher:
    """Runs messages to their ends.

    Args:
        name: of the worker, for the records.
        follower: goes on with what follows a job; without it, nothing does.

    Attributes:
        tallies: what has ended here.
    """

    def __init__(
        self,
        runtime: Runtime,
        ledger: Ledger,
        *,
        settings: Settings,
        name: str,
        follower: Follower | None = None,
    ) -> None:
        self.name = name
        self.tallies = Tallies()
        self._follower = follower
        self._runtime = runtime
        self._ledger = ledger
        self._reader = Reader(settings, self._load)
        self._settings = settings
        self._deltas = DeltaWriter(ledger)
        self._running: dict[str, Handle] = {}
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()  # guards the two
        self._stopping = threading.Event()
        self._until = math.inf

    def claims(self) -> list[Claim]:
        """What is claimed at this moment."""
        with self._lock:
            return list(self._claims.values())

    def running(self) -> list[str]:
        """The ids of the jobs in flight."""
        with self._lock:
            return list(self._running)

    def stop(self, job_id: str, reason: GPTFlowError, *, claim: Claim | None = None) -> bool:
        """Stop a job that runs here. False if it does not.

        Args:
            claim: only if it runs under this one.
        """
        with self._lock:
            handle = self._running.get(job_id)
            if claim is not None and self._claims.get(job_id) != claim:
                return False  # it was given back, and has come here again
        return handle is not None and handle.stop(reason)

    def hurry(self, seconds: float) -> None:
        """Wait for a Redis that does not answer no longer than this from now on.

        What cannot be recorded by then is left to its lease, and others run it again.
        """
        self._until = min(self._until, time.monotonic() + seconds)

    def close(self) -> None:
        """Wait no longer for a Redis that does not answer. Everything must have ended."""
        self._stopping.set()
        self._deltas.close()

    def run(self, message: Any, handle: Handle, signature: Any = None) -> Result | None:
        """Run a message to its end and record it. Blocks; errors are in the record.

        Args:
            message: a job's id, or a whole envelope that nobody has recorded yet: the object,
                or its JSON, as it was signed.
            signature: of the envelope.

        Returns:
            How it ended, where that was recorded; None where there was nothing to do, or where
            it will be run again.
        """
        job_id = message if is_id(message) else self.take_in(message, signature)
        if not isinstance(job_id, str):
            return job_id
        # Before the claim: a cancellation that comes right after it must find somebody.
        with self._lock:
            if self._running.setdefault(job_id, handle) is not handle:
                logger.info("Job %s is dropped: it runs here already.", job_id)
                return None
        self._runtime.enter()
        try:
            return self._claim_and_run(job_id, handle)
        finally:
            self._runtime.leave()
            with self._lock:
                del self._running[job_id]
                self._claims.pop(job_id, None)

    def take_in(self, message: Any, signature: Any = None) -> str | Result | None:
        """As `adopt`; what cannot be understood is refused on record. Returns that record."""
        try:
            return self.adopt(message, signature)
        except (InvalidInput, UntrustedMessage) as error:
            return self._refuse(message, error)

    def turn_away(self, message: Any, signature: Any = None) -> None:
        """Leave a job to other workers whose message has come here. Blocks."""
        job_id = message if is_id(message) else self.take_in(message, signature)
        if isinstance(job_id, str):
            self._persist(partial(self._ledger.give_up, job_id))

    def adopt(self, message: Any, signature: Any = None) -> str | None:
        """Record a job that was sent without a record.

        Returns:
            Its id, where it is to be run now.

        Raises:
            InvalidInput: the message is no envelope, or too large.
            UntrustedMessage: it is not signed, and this worker asks for that.
        """
        packed = self._reader.read_message(message, signature)
        envelope = packed.envelope
        job_id = self._persist(partial(self._ledger.adopt, packed))
        if job_id is None:
            logger.info("Job %s is dropped: its key was used before.", envelope.id)
        elif envelope.not_before is not None and envelope.not_before > time.time():
            return None  # its doorbell will come
        return job_id

    def _refuse(self, message: Any, error: GPTFlowError) -> Result:
        """Record a message that cannot be understood, as far as it says what it is."""
        job_id, task = names_of(message)
        logger.error(
            "Job %.80s of task %.80s is refused: [%s] %s", job_id, task, error.code, error.message
        )
        result = Result.failure(job_id, task, error)
        self._persist(partial(self._ledger.refuse, result, code=error.code))
        return result

    def refuse(self, job_id: str, task: str, error: GPTFlowError) -> None:
        """Record a message that did not come as far as to be run."""
        result = Result.failure(job_id, task, error)
        self._persist(partial(self._ledger.refuse, result, code=error.code))

    def _claim_and_run(self, job_id: str, handle: Handle) -> Result | None:
        claim = self._persist(partial(self._ledger.claim, job_id, self.name, handle.number))
        if not isinstance(claim, Claim):
            logger.info("Job %s is dropped: %s.", job_id, claim)
            return None
        with self._lock:
            self._claims[job_id] = claim
        started = time.time()
        try:
            envelope = self._reader.open_claim(claim)
        except (InvalidInput, UntrustedMessage) as error:
            logger.error("Job %s is refused: [%s] %s", job_id, error.code, error.message)
            result = Result.failure(job_id, claim.task, error)
            self._persist(partial(self._ledger.finish, claim, Ending.of(result)))
            return result
        if claim.fence == 1:
            self._tally_start(envelope, started - max(claim.submitted, envelope.not_before or 0))
        ended = self._run(envelope, claim, handle)
        if ended is None or self._try_again(claim, ended, handle):
            stopped = isinstance(handle.stopped, EngineStopped)
            self._tally_end(envelope, [("handed_back" if stopped else "retried", None)])
            return None
        queued = max(0.0, started - claim.submitted)
        timings = {"queued": queued, "running": time.time() - started, **ended.timings}
        ending = self._ending(dataclasses.replace(ended, timings=timings))
        if self._persist(partial(self._ledger.finish, claim, ending)):
            self._go_on(envelope, ending.result)
            if envelope.batch is None:
                self._tally_end(envelope, [_outcome(ending.result)])
                self._observe(envelope, ending.result)
        else:
            self._tally_end(envelope, [("refused", None)])
            logger.warning("The result of job %s is refused: it was given to another.", job_id)
        return ending.result

    def _tally_start(self, envelope: Envelope, queued: float) -> None:
        self.tallies.start(self._plugin(envelope), envelope.job_class, queued)

    def _tally_end(self, envelope: Envelope, outcomes: Iterable[tuple[str, float | None]]) -> None:
        self.tallies.end(self._plugin(envelope), envelope.job_class, outcomes)

    def _plugin(self, envelope: Envelope) -> str:
        return self._runtime.registry.owners.get(envelope.task, UNKNOWN)

    def _load(self, job_id: str, most: int) -> str:
        return self._persist(partial(self._ledger.load_aside, job_id, most))

    def _run(self, envelope: Envelope, claim: Claim, handle: Handle) -> Result | None:
        if claim.late:
            return self._expire(envelope, claim)
        if envelope.items is not None:
            return self._run_items(envelope, envelope.items, claim, handle)
        return self._run_single(envelope, claim, handle)

    def _run_single(self, envelope: Envelope, claim: Claim, handle: Handle) -> Result:
        if envelope.stream and claim.fence > 1:
            self._persist(partial(self._deltas.restart, claim))
        on_delta = partial(self._deltas.add, claim) if envelope.stream else None
        future = self._runtime.start(envelope, handle, on_delta)
        try:
            result = future.result()
        except CancelledError:
            result = Result.failure(envelope.id, envelope.task, _reason(handle))
        if envelope.stream:
            # Before the end is recorded: nothing is added to the stream of a job that has ended.
            with contextlib.suppress(BrokerUnavailable):
                self._persist(partial(self._deltas.finish, claim))
        return result

    def _try_again(self, claim: Claim, result: Result, handle: Handle) -> bool:
        """Give a job back whose error may pass. False where its result stands."""
        if result.error is None:
            return False
        stopped = isinstance(handle.stopped, EngineStopped)
        if not stopped and not self._may_pass(claim, result):
            return False
        wait = 0.0 if stopped else min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (claim.attempt - 1))
        release = partial(self._ledger.release, claim, wait=wait, counts=not stopped)
        if not self._persist(release):
            return False
        if not stopped:
            logger.warning(
                "Job %s failed with %s and is tried again in %g s.",
                claim.job_id,
                result.error.code,
                wait,
            )
        return True

    def _may_pass(self, claim: Claim, result: Result) -> bool:
        if result.error is None or claim.attempt >= self._settings.max_attempts:
            return False
        error = from_info(result.error)
        return error.retryable and not isinstance(error, JobTimeout)

    # Batches.

    def _run_items(
        self, envelope: Envelope, items: Sequence[Item], claim: Claim, handle: Handle
    ) -> Result | None:
        batch = str(envelope.batch)
        if claim.fence > 1:  # what an earlier claim has recorded stands
            ended = self._persist(partial(self._ledger.ended_items, batch))
            items = [item for item in items if item.index not in ended]
        left = {item.index: item for item in items}
        if claim.crashes < ALONE_AFTER:
            error = self._run_together(envelope, items, claim, handle, left)
        else:
            error = self._run_one_by_one(envelope, items, claim, handle, left)
        if not left:
            return Result(id=envelope.id, task=envelope.task, state="done")
        error = error or _reason(handle)
        failed = Result.failure(envelope.id, envelope.task, error)
        if self._try_again(claim, failed, handle):
            return None
        self._end_items(envelope, left.values(), error, claim)
        return failed

    def _run_together(
        self,
        envelope: Envelope,
        items: Sequence[Item],
        claim: Claim,
        handle: Handle,
        left: dict[int, Item],
    ) -> GPTFlowError | None:
        """Run items side by side and take those that are recorded out of `left`.

        Returns:
            Why the others are left; None where the message was stopped.
        """
        ended: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        future = self._runtime.start_items(envelope, items, ended, handle)
        future.add_done_callback(lambda _: ended.put(None))
        again: GPTFlowError | None = None
        # Whatever has ended while the last ones were being recorded is recorded together.
        while (pairs := _drain(ended)) is not None:
            final = [pair for pair in pairs if not self._may_pass(claim, pair[1])]
            for _, result in pairs:
                if self._may_pass(claim, result):
                    again = from_info(result.error)  # type: ignore[arg-type]
            self._record_items(envelope, final, claim)
            for item, _ in final:
                left.pop(item.index, None)
        return again or (None if future.cancelled() else _unexpected(future))

    def _run_one_by_one(
        self,
        envelope: Envelope,
        items: Sequence[Item],
        claim: Claim,
        handle: Handle,
        left: dict[int, Item],
    ) -> GPTFlowError | None:
        """As `_run_together`, in a way that shows which item it is that kills the worker."""
        again: GPTFlowError | None = None
        blamed = claim.at
        for item in items:
            if item.index == blamed:
                dead = JobDead(f"The worker died {claim.crashes} times while it ran this item.")
                self._end_items(envelope, [item], dead, claim)
                left.pop(item.index)
                continue
            self._persist(partial(self._ledger.mark, claim, item.index))
            error = self._run_together(envelope, [item], claim, handle, left)
            again = error or again
            if handle.stopped is not None:
                break
        return again

    def _record_items(self, envelope: Envelope, pairs: Sequence[Ended], claim: Claim) -> None:
        items = {item.index: item for item, _ in pairs}
        if not items:
            return
        endings = {
            item.index: self._ending(
                dataclasses.replace(result, custom_id=item.custom_id)
                if item.custom_id is not None
                else result
            )
            for item, result in pairs
        }
        record = partial(self._ledger.finish_items, str(envelope.batch), endings, claim)
        if not self._persist(record):
            self._tally_end(envelope, [("refused", None) for _ in endings])
            logger.warning("Results of job %s are refused: it was given to another.", claim.job_id)
            return
        self._tally_end(envelope, [_outcome(ending.result) for ending in endings.values()])
        if not self._runtime.registry.observes_jobs:
            return
        for index, ending in endings.items():
            alone = envelope.model_copy(update={"items": None, "input": items[index].input})
            self._observe(alone, ending.result)

    def _end_items(
        self, envelope: Envelope, items: Iterable[Item], error: GPTFlowError, claim: Claim
    ) -> None:
        """Record the same end for items of a message."""
        name, task = partial(records.item_id, str(envelope.batch)), envelope.task
        failures = [(item, Result.failure(name(item.index), task, error)) for item in items]
        self._record_items(envelope, failures, claim)

    def _expire(self, envelope: Envelope, claim: Claim) -> Result:
        error = JobTimeout(f"Job {envelope.id} was not started before its deadline.")
        failure = Result.failure(envelope.id, envelope.task, error)
        if envelope.items is not None:
            self._end_items(envelope, envelope.items, error, claim)
        return dataclasses.replace(failure, state="expired")

    def _ending(self, result: Result) -> Ending:
        # Thrice the input's: what takes four bytes there may take twelve here, escaped.
        return Ending.of(result, limit=3 * self._settings.max_payload)

    def _go_on(self, envelope: Envelope, result: Result) -> None:
        """Enqueue what follows a job. Whatever fails here, others will see to it."""
        if self._follower is not None and (envelope.then or envelope.join):
            try:
                self._follower.follow(envelope, result)
            except GPTFlowError as error:
                logger.warning("What follows job %s has to wait: %s", envelope.id, error.message)

    def _observe(self, envelope: Envelope, result: Result) -> None:
        registry = self._runtime.registry
        if result.error is None:
            registry.observe("on_job_finished", envelope=envelope, result=result)
        elif result.state != "cancelled":
            error = from_info(result.error)
            registry.observe("on_job_failed", envelope=envelope, error=error)

    def _persist(self, call: Callable[[], T]) -> T:
        """Make a call to the ledger, patiently: Redis may be restarting.

        Raises:
            BrokerUnavailable: it did not come back in time.
        """
        until = time.monotonic() + _PATIENCE
        for attempt in itertools.count():
            try:
                return call()
            except BrokerUnavailable as error:
                left = min(until, self._until) - time.monotonic()
                if left <= 0 or self._stopping.is_set():
                    raise
                logger.warning("%s Trying again.", error.message)
            self._stopping.wait(min(5.0, 0.2 * 2**attempt, left))
        raise AssertionError("unreachable")


def _drain(ended: queue.SimpleQueue[Ended | None]) -> list[Ended] | None:
    """Everything that is in the queue, at least one; None when the end mark comes first."""
    pairs: list[Ended] = []
    entry = ended.get()
    while entry is not None:
        pairs.append(entry)
        try:
            entry = ended.get_nowait()
        except queue.Empty:
            return pairs
    if pairs:
        ended.put(None)
    return pairs or None


def _outcome(result: Result) -> tuple[str, float | None]:
    """The state in which it ended, and for how many seconds it ran."""
    return result.state, result.timings.get("running")


def _reason(handle: Handle) -> GPTFlowError:
    return handle.stopped or EngineStopped("The worker was stopped.")


def _unexpected(future: Future[None]) -> GPTFlowError | None:
    error = future.exception()
    return None if error is None else JobFailed(f"The worker failed with {type(error).__name__}.")
