"""Runtime: one process's event loop, engine and executor, which run messages to their ends.

A message is run by a thread that waits (`run`), while the jobs in it share one event loop: a
single job, or the items of a batch side by side. The thread keeps the records, so the loop
never waits for Redis.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gptflow.client import ITEMS_PER_MESSAGE
from gptflow.config import Settings
from gptflow.context import Job, item_seed
from gptflow.envelope import Envelope, Item
from gptflow.errors import (
    BrokerUnavailable,
    EngineStopped,
    GPTFlowError,
    InvalidInput,
    InvalidOutput,
    JobCancelled,
    JobFailed,
    JobTimeout,
    from_info,
)
from gptflow.executor import Executor
from gptflow.plugins import Registry
from gptflow.queue import payload, records
from gptflow.queue.deltas import DeltaWriter
from gptflow.queue.handle import Handle
from gptflow.queue.mapper import Mapper
from gptflow.queue.records import Claim
from gptflow.queue.store import Store
from gptflow.request import Delta, Engine
from gptflow.result import Result
from gptflow.transport import Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ITEMS = TypeAdapter(tuple[Item, ...])
_PATIENCE = 60.0
"""Seconds for which a record is kept in memory while Redis does not answer."""

_SUBMITTERS = 32
"""Threads in which requests are tokenised on their way to the engine."""


class Runtime:
    """Runs messages on one engine.

    Args:
        transport: where `Context.map` submits to; also the store of the records.
        settings: what tasks are set up with.
        name: of the worker, for the records.
        concurrency: messages in flight at most.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        transport: Transport,
        store: Store,
        *,
        settings: Settings,
        name: str,
        concurrency: int,
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.name = name
        self.concurrency = concurrency
        self.in_flight = 0
        self.peak_in_flight = 0
        self._transport = transport
        self._store = store
        self._executor = Executor(engine, registry, settings=settings, map=self._map)
        self._deltas = DeltaWriter(store)
        self._running: dict[str, Handle] = {}
        self._lock = threading.Lock()  # guards the counters and `_running`
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._submitters = ThreadPoolExecutor(_SUBMITTERS, thread_name_prefix="gptflow-submit")
        self._mapper = Mapper(transport, concurrency)
        self._loop.set_default_executor(self._submitters)
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="gptflow-loop", daemon=True
        )
        self._thread.start()

    @property
    def messages(self) -> int:
        """Messages in flight."""
        return len(self._running)

    def setup(self) -> None:
        """Let every task load what it needs.

        Raises:
            PluginError: a task's `setup` raised.
        """
        self._executor.setup()

    def call_later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call from the event loop after some seconds. Returns what cancels it."""
        timers: list[asyncio.TimerHandle] = []
        loop = self._loop
        loop.call_soon_threadsafe(lambda: timers.append(loop.call_later(seconds, call)))

        def cancel() -> None:
            loop.call_soon_threadsafe(lambda: timers[0].cancel())

        return cancel

    def running(self) -> list[str]:
        """The ids of the jobs in flight."""
        with self._lock:
            return list(self._running)

    def stop(self, job_id: str, reason: GPTFlowError) -> bool:
        """Stop a job that runs here. False if it does not."""
        with self._lock:
            handle = self._running.get(job_id)
        if handle is not None:
            handle.stop(reason)
        return handle is not None

    def close(self) -> None:
        """Stop everything that runs. The engine stays as it is."""
        for job_id in self.running():
            self.stop(job_id, EngineStopped("The worker was stopped."))
        self._stopping.set()
        asyncio.run_coroutine_threadsafe(_cancel_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._submitters.shutdown(wait=False, cancel_futures=True)
        self._mapper.close()
        self._deltas.close()

    # Messages, each in a thread of its own.

    def run(self, data: Any, handle: Handle) -> Result | None:
        """Run a message to its end and record it. Blocks; errors are in the record.

        Args:
            data: the envelope as it came.

        Returns:
            How it ended, where that was recorded; None where there was nothing to do.
        """
        try:
            envelope = Envelope.from_wire(data)
        except InvalidInput as error:
            return self._refuse(data, error)
        if envelope.not_before is not None and envelope.not_before > time.time():
            self._delay(envelope)
            return None
        # Before the claim: a cancellation that comes right after it must find somebody.
        with self._lock:
            if self._running.setdefault(envelope.id, handle) is not handle:
                logger.info("Job %s is dropped: it runs here already.", envelope.id)
                return None
        try:
            return self._claim_and_run(envelope, handle)
        finally:
            with self._lock:
                del self._running[envelope.id]

    def hand_back(self, data: Any) -> None:
        """Enqueue a message again, unclaimed, for another worker. Blocks.

        Args:
            data: the envelope as it came.
        """
        try:
            self._delay(Envelope.from_wire(data))
        except InvalidInput as error:
            self._refuse(data, error)

    def _delay(self, envelope: Envelope) -> None:
        packed = payload.Packed(envelope=envelope, wire=payload.dumps(envelope.to_wire()))
        self._persist(partial(self._store.delay, packed))

    def _claim_and_run(self, envelope: Envelope, handle: Handle) -> Result | None:
        claim = self._persist(partial(self._store.claim, envelope, self.name, handle.number))
        if claim == "late":
            return self._expire(envelope)
        if not isinstance(claim, Claim):
            logger.info("Job %s is dropped: %s.", envelope.id, claim)
            if claim == "cancelled":
                self._end_items(envelope, JobCancelled(f"Job {envelope.id} was cancelled."))
            return None
        started = time.time()
        try:
            envelope = self._with_input(envelope)
        except GPTFlowError as error:
            result = Result.failure(envelope.id, envelope.task, error)
        else:
            if envelope.items is not None:
                result = self._run_items(envelope, envelope.items, handle)
            else:
                result = self._run_single(envelope, claim, handle)
        queued = max(0.0, started - claim.submitted)
        timings = {"queued": queued, "running": time.time() - started, **result.timings}
        result = dataclasses.replace(result, timings=timings)
        if self._persist(partial(self._store.finish, claim, result)) and envelope.batch is None:
            self._observe(envelope, result)
        return result

    def _run_single(self, envelope: Envelope, claim: Claim, handle: Handle) -> Result:
        if envelope.stream and claim.fence > 1:
            self._deltas.restart(envelope.id)
        on_delta = partial(self._deltas.add, envelope.id) if envelope.stream else None
        job = _job(envelope, envelope.id, envelope.input, on_delta)
        future = self._start(self._execute(job), handle)
        try:
            result = future.result()
        except CancelledError:
            result = Result.failure(envelope.id, envelope.task, _reason(handle))
        if envelope.stream:
            self._deltas.flush()
        return _storable(result)

    def _run_items(self, envelope: Envelope, items: Sequence[Item], handle: Handle) -> Result:
        ended: queue.SimpleQueue[tuple[Item, Result] | None] = queue.SimpleQueue()
        future = self._start(self._execute_items(envelope, items, ended), handle)
        future.add_done_callback(lambda _: ended.put(None))
        left = {item.index: item for item in items}
        # Whatever has ended while the last ones were being recorded is recorded together.
        while (pairs := _drain(ended)) is not None:
            self._record_items(envelope, pairs)
            for item, _ in pairs:
                left.pop(item.index, None)
        if not left:
            return Result(id=envelope.id, task=envelope.task, state="done")
        reason = _reason(handle) if future.cancelled() else _unexpected(future)
        self._end_items(envelope.model_copy(update={"items": tuple(left.values())}), reason)
        return Result.failure(envelope.id, envelope.task, reason)

    def _record_items(self, envelope: Envelope, pairs: Iterable[tuple[Item, Result]]) -> None:
        pairs = [
            (item, dataclasses.replace(_storable(result), custom_id=item.custom_id))
            for item, result in pairs
        ]
        if not pairs or envelope.batch is None:
            return
        results = {item.index: result for item, result in pairs}
        self._persist(partial(self._store.finish_items, envelope.batch, results))
        for item, result in pairs:
            alone = envelope.model_copy(update={"items": None, "input": item.input})
            self._observe(alone, result)

    def _end_items(self, envelope: Envelope, error: GPTFlowError) -> None:
        """Record the same end for every item of a message."""
        if envelope.batch is None:
            return
        try:
            items = self._with_input(envelope).items or ()
        except InvalidInput as missing:
            logger.error("Job %s of batch %s: %s", envelope.id, envelope.batch, missing.message)
            return
        name, task = partial(records.item_id, envelope.batch), envelope.task
        failures = ((item, Result.failure(name(item.index), task, error)) for item in items)
        self._record_items(envelope, failures)

    def _expire(self, envelope: Envelope) -> Result:
        error = JobTimeout(f"Job {envelope.id} was not started before its deadline.")
        failure = Result.failure(envelope.id, envelope.task, error)
        result = dataclasses.replace(failure, state="expired")
        self._end_items(envelope, error)
        if self._persist(partial(self._store.end, result)) and envelope.batch is None:
            self._observe(envelope, result)
        return result

    def _refuse(self, data: Any, error: InvalidInput) -> Result | None:
        """Record a message that cannot be understood, as far as it says what it is."""
        known = data if isinstance(data, dict) else {}
        job_id, task = str(known.get("id")), str(known.get("task"))
        logger.error("Job %.80s of task %.80s is refused: %s", job_id, task, error.message)
        result = Result.failure(job_id, task, error)
        self._persist(partial(self._store.end, result))
        return result

    def _with_input(self, envelope: Envelope) -> Envelope:
        """The envelope with its input in it.

        Raises:
            InvalidInput: the input is not where the envelope says.
        """
        if envelope.input_ref is None:
            return envelope
        value = json.loads(self._persist(partial(self._store.load_aside, envelope.input_ref)))
        if envelope.batch is None:
            return envelope.model_copy(update={"input": value, "input_ref": None})
        try:
            items = _ITEMS.validate_python(value)
        except ValidationError:
            raise InvalidInput("What the job refers to is not a batch's items.") from None
        return envelope.model_copy(update={"items": items, "input_ref": None})

    def _observe(self, envelope: Envelope, result: Result) -> None:
        if result.error is None:
            self.registry.observe("on_job_finished", envelope=envelope, result=result)
        elif result.state != "cancelled":
            error = from_info(result.error)
            self.registry.observe("on_job_failed", envelope=envelope, error=error)

    def _persist(self, call: Callable[[], T]) -> T:
        """Make a call to the store, patiently: Redis may be restarting.

        Raises:
            BrokerUnavailable: it did not come back in time.
        """
        until = time.monotonic() + _PATIENCE
        for attempt in itertools.count():
            try:
                return call()
            except BrokerUnavailable as error:
                if time.monotonic() > until or self._stopping.is_set():
                    raise
                logger.warning("%s Trying again.", error.message)
            self._stopping.wait(min(5.0, 0.2 * 2**attempt))
        raise AssertionError("unreachable")

    # Jobs, all on the event loop.

    def _start(self, coroutine: Any, handle: Handle) -> Future[Any]:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        handle.attach(future)
        return future

    async def _execute_items(
        self,
        envelope: Envelope,
        items: Sequence[Item],
        ended: queue.SimpleQueue[tuple[Item, Result] | None],
    ) -> None:
        async def one(item: Item) -> None:
            job_id = records.item_id(envelope.batch or envelope.id, item.index)
            job = _job(envelope, job_id, item.input, None)
            job = dataclasses.replace(job, seed=item_seed(envelope.seed, item.index))
            ended.put((item, await self._execute(job)))

        await asyncio.gather(*map(one, items))

    async def _execute(self, job: Job) -> Result:
        self._count(1)
        try:
            return await self._executor.run(job)
        except (SystemExit, KeyboardInterrupt) as error:
            # From a plugin's code; let through, it would take the event loop down.
            failed = JobFailed(f"Task {job.task!r} raised {type(error).__name__}.")
            return Result.failure(job.id, job.task, failed)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.in_flight += change
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    async def _map(self, parent: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run a task on many inputs: through the queue, or right here.

        Workers whose every place is held by a job that waits for its own batch would wait for
        ever. That cannot be: a job submits only while its worker has a place free, so the job
        that takes the last place finds none and runs its inputs itself, and its place comes
        free again. What one message holds gains nothing from the queue and runs here, too.
        """
        if len(inputs) <= ITEMS_PER_MESSAGE or self.messages >= self.concurrency:
            return await self._executor.map_here(parent, task, inputs)
        return await self._mapper.run(parent, task, inputs)


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _job(
    envelope: Envelope, job_id: str, input: Any, on_delta: Callable[[Delta], None] | None
) -> Job:
    return Job(
        id=job_id,
        task=envelope.task,
        input=input,
        seed=envelope.seed,
        tenant=envelope.tenant,
        job_class=envelope.job_class,
        deadline=envelope.deadline,
        on_delta=on_delta,
    )


def _drain(
    ended: queue.SimpleQueue[tuple[Item, Result] | None],
) -> list[tuple[Item, Result]] | None:
    """Everything that is in the queue, at least one; None when the end mark comes first."""
    pairs: list[tuple[Item, Result]] = []
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


def _reason(handle: Handle) -> GPTFlowError:
    return handle.stopped or EngineStopped("The worker was stopped.")


def _unexpected(future: Future[Any]) -> GPTFlowError:
    error = future.exception()
    return JobFailed(f"The worker failed with {type(error).__name__}.")


def _storable(result: Result) -> Result:
    """The result, or a failure where the output is not JSON."""
    try:
        records.encode(result)
    except InvalidOutput as error:
        return Result.failure(result.id, result.task, error)
    return result
