"""Follower: enqueues what follows a job, once the job's end is on record.

The envelope says what follows. The ledger keeps the id of each ended job that something follows
until that has been enqueued: should a worker die between the two, another goes on. Whatever is
done twice has the same id, and so is done once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gptflow.config import Settings
from gptflow.envelope import Envelope, Step
from gptflow.errors import (
    GPTFlowError,
    InvalidInput,
    JobFailed,
    JobNotFound,
    QueueFull,
    UntrustedMessage,
)
from gptflow.queue import records
from gptflow.queue.reader import Reader
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.signing import SETTING, chains_allowed
from gptflow.result import TERMINAL, Result, from_info
from gptflow.transport import JobRecord

logger = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds after a job's end that whoever recorded it has to go on."""

_AT_ONCE = 100


class Queue(Protocol):
    """Where the next job goes."""

    def submit(self, envelope: Envelope) -> str: ...

    def job(self, job_id: str) -> JobRecord: ...


class Follower:
    """Goes on after jobs. Thread-safe."""

    def __init__(self, ledger: RedisLedger, queue: Queue, settings: Settings) -> None:
        self._ledger = ledger
        self._queue = queue
        self._allowed = chains_allowed(settings)
        self._reader = Reader(settings, ledger.load_aside)

    def follow(self, envelope: Envelope, result: Result) -> None:
        """Enqueue what follows a job that has ended.

        Raises:
            BrokerUnavailable: Redis does not answer; it will be tried again.
            QueueFull: there is no room for it now; it will be tried again.
        """
        if not self._allowed:
            logger.warning(
                "What follows job %s is ignored: chains of jobs that are not signed are off "
                "(%s, GPTFLOW_SIGNING_KEY).",
                envelope.id,
                SETTING,
            )
            self._break(
                envelope.then,
                UntrustedMessage(
                    "The workers do not go on with chains of jobs that are not signed.",
                    hint=f"Set GPTFLOW_SIGNING_KEY, or {SETTING}=1 for workers and callers.",
                ),
            )
        elif envelope.join is not None:
            self._join(envelope, result)
        elif result.ok:
            self._enqueue(envelope, result.output)
        else:
            self._break(envelope.then, _error_of(result))
        self._ledger.followed(envelope.id)

    def sweep(self) -> int:
        """Go on after jobs whose worker did not. Returns how many there were."""
        left = self._ledger.unfollowed(PATIENCE, _AT_ONCE)
        for ended in left:
            try:
                if ended.wire and ended.result:
                    envelope = self._reader.parse_record(ended.job_id, ended.wire, ended.signature)
                    self.follow(envelope, records.decode(ended.result))
                else:
                    self._ledger.followed(ended.job_id)
            except QueueFull as error:
                logger.info("What follows job %s has to wait: %s", ended.job_id, error.message)
            except (InvalidInput, UntrustedMessage) as error:
                logger.warning(
                    "What follows job %s is ignored: [%s] %s",
                    ended.job_id,
                    error.code,
                    error.message,
                )
                self._ledger.followed(ended.job_id)
        return len(left)

    def _join(self, envelope: Envelope, result: Result) -> None:
        """Go on where this was the last job of its group."""
        assert envelope.join is not None
        results = self._ledger.join(envelope.join, envelope.id)
        if not result.ok:  # nobody needs to wait for the others
            self._break(envelope.then, _error_of(result))
        elif results is None:
            return
        elif all(other is not None and other.ok for other in results):
            self._enqueue(envelope, [other.output for other in results if other is not None])
        else:
            self._break(envelope.then, _first_error(results))

    def _enqueue(self, envelope: Envelope, output: Any) -> None:
        if not envelope.then:
            return
        step, *rest = envelope.then
        try:
            following = _next(envelope, step, output, tuple(rest))
            self._queue.submit(following)
            record = self._queue.job(step.id)
        except InvalidInput as error:
            self._break(envelope.then, error)
            return
        except JobNotFound:
            return
        # Somebody cancelled it before its turn: nothing else will break the chain behind it.
        if record.state in TERMINAL and record.state != "done" and record.started is None:
            self._break(rest, JobFailed(f"The job before it ended as {record.state}."))

    def _break(self, steps: Sequence[Step], error: GPTFlowError) -> None:
        """Record that jobs will never run, for whoever waits for them."""
        for step in steps:
            self._ledger.refuse(Result.failure(step.id, step.task, error))


def _next(envelope: Envelope, step: Step, output: Any, rest: tuple[Step, ...]) -> Envelope:
    """The envelope of a step, its input made of the output of the job before it."""
    wait_until = None if step.wait is None else time.time() + step.wait
    return Envelope.of(
        id=step.id,
        task=step.task,
        input=fill(step, output),
        tenant=envelope.tenant,
        job_class=step.job_class or envelope.job_class,
        seed=step.seed,
        stream=step.stream,
        not_before=wait_until,
        deadline=None if step.timeout is None else (wait_until or time.time()) + step.timeout,
        trace=envelope.trace,
        then=rest,
        join=step.join,
    )


def fill(step: Step, output: Any) -> Any:
    """A step's input, made of the output of the job before it.

    Raises:
        InvalidInput: that has no such field.
    """
    value = output
    for name in step.take.split(".") if step.take else ():
        outputs = value if isinstance(value, list) else [value]
        if not all(isinstance(each, Mapping) and name in each for each in outputs):
            raise InvalidInput(f"The output of the job before it has no field {step.take!r}.")
        taken = [each[name] for each in outputs]
        value = taken if isinstance(value, list) else taken[0]
    if step.into is None:
        return value
    return {**(step.input or {}), step.into: value}


def _error_of(result: Result) -> GPTFlowError:
    if result.error is None:
        return JobFailed(f"Job {result.id} ended as {result.state}.")
    return from_info(result.error)


def _first_error(results: Sequence[Result | None]) -> GPTFlowError:
    for result in results:
        if result is None:
            return JobNotFound("The record of a job of the group has expired.")
        if not result.ok:
            return _error_of(result)
    return JobFailed("The group failed.")
