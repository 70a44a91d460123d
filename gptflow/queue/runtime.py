"""Runtime: one process's event loop, engine and executor, on which jobs run side by side.

What runs a message waits for it in a thread of its own (see `gptflow.queue.dispatcher`), so the
loop itself never waits for Redis.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gptflow.client import ITEMS_PER_MESSAGE
from gptflow.config import Settings
from gptflow.context import Job, item_seed
from gptflow.envelope import Envelope, Item
from gptflow.errors import JobFailed
from gptflow.executor import Executor
from gptflow.plugins import Registry
from gptflow.queue import records
from gptflow.queue.handle import Handle
from gptflow.queue.mapper import Mapper
from gptflow.queue.spans import Run, Spans
from gptflow.request import Delta, Engine
from gptflow.result import Result
from gptflow.transport import Transport

Ended = tuple[Item, Result]

_SUBMITTERS = 32
"""Threads in which requests are tokenised on their way to the engine."""


class Runtime:
    """Runs jobs on one engine.

    Args:
        transport: where `Context.map` submits to.
        settings: what tasks are set up with.
        concurrency: messages in flight at most.
        most: jobs and rows in flight at most, about: a message brings all of its rows.
        ended: called at the end of each job, row and message: there may be room again.
        spans: what is told of each job, if anything is.

    Attributes:
        in_flight: jobs and items that run now.
        peak_in_flight: the most that ever ran at once.
        alone: while this is set, a job runs with nothing beside it, and takes nothing from the
            queue either.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        transport: Transport,
        *,
        settings: Settings,
        concurrency: int,
        most: int,
        ended: Callable[[], None] = lambda: None,
        spans: Spans | None = None,
    ) -> None:
        self.engine = engine
        self.registry = registry
        self._concurrency = concurrency
        self._most = most
        self.in_flight = 0
        self.peak_in_flight = 0
        self.messages = 0
        self.alone = threading.Event()
        self._ended = ended
        self._spans = spans
        self._executor = Executor(engine, registry, settings=settings, map=self._map)
        self._counting = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._submitters = ThreadPoolExecutor(_SUBMITTERS, thread_name_prefix="gptflow-submit")
        self._mapper = Mapper(transport, concurrency)
        self._loop.set_default_executor(self._submitters)
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="gptflow-loop", daemon=True
        )
        self._thread.start()

    @property
    def room(self) -> int:
        """How many more jobs and rows may be taken."""
        return 0 if self.messages >= self._concurrency else max(0, self._most - self.in_flight)

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

    def close(self) -> None:
        """Stop everything that runs. The engine stays as it is."""
        asyncio.run_coroutine_threadsafe(_cancel_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._submitters.shutdown(wait=False, cancel_futures=True)
        self._mapper.close()

    # Called from messages' threads.

    def enter(self) -> None:
        """Count one more message in flight."""
        with self._counting:
            self.messages += 1

    def leave(self) -> None:
        with self._counting:
            self.messages -= 1
        self._ended()

    def start(
        self, envelope: Envelope, handle: Handle, on_delta: Callable[[Delta], None] | None
    ) -> Future[Result]:
        """Run a single job. `handle` can stop it, and the future is cancelled then."""
        job = Job(
            id=envelope.id,
            task=envelope.task,
            input=envelope.input,
            seed=envelope.seed,
            tenant=envelope.tenant,
            job_class=envelope.job_class,
            deadline=envelope.deadline,
            on_delta=on_delta,
        )
        return self._start(envelope, partial(self._run, job), handle)

    def start_items(
        self,
        envelope: Envelope,
        items: Sequence[Item],
        ended: queue.SimpleQueue[Ended | None],
        handle: Handle,
    ) -> Future[None]:
        """Run items of a batch side by side, and put each one with its result into `ended`."""
        return self._start(envelope, partial(self._run_items, envelope, items, ended), handle)

    def _start(self, envelope: Envelope, run: Run[Any], handle: Handle) -> Future[Any]:
        spans, model = self._spans, self.engine.model.id
        traced = run() if spans is None else spans.around(envelope, model, run)
        future = asyncio.run_coroutine_threadsafe(traced, self._loop)
        handle.attach(future)
        return future

    # On the event loop.

    async def _run_items(
        self, envelope: Envelope, items: Sequence[Item], ended: queue.SimpleQueue[Ended | None]
    ) -> None:
        async def one(item: Item) -> None:
            job = Job(
                id=records.item_id(str(envelope.batch), item.index),
                task=envelope.task,
                input=item.input,
                seed=item_seed(envelope.seed, item.index),
                tenant=envelope.tenant,
                job_class=envelope.job_class,
                deadline=envelope.deadline,
            )
            ended.put((item, await self._run(job)))

        await asyncio.gather(*map(one, items))

    async def _run(self, job: Job) -> Result:
        self._count(1)
        try:
            return await self._executor.run(job)
        except (SystemExit, KeyboardInterrupt) as error:
            # From a plugin's code; let through, it would take the event loop down.
            failed = JobFailed(f"Task {job.task!r} raised {type(error).__name__}.")
            return Result.failure(job.id, job.task, failed)
        finally:
            self._count(-1)
            self._ended()

    def _count(self, change: int) -> None:
        with self._counting:
            self.in_flight += change
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    async def _map(self, parent: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run a task on many inputs: through the queue, or right here.

        Workers whose every place is held by a job that waits for its own batch would wait for
        ever. That cannot be: a job submits only while its worker has a place free, so the job
        that takes the last place finds none and runs its inputs itself, and its place comes
        free again. What one message holds gains nothing from the queue and runs here, too.
        """
        if self.alone.is_set() or self.room == 0 or len(inputs) <= ITEMS_PER_MESSAGE:
            return await self._executor.map_here(parent, task, inputs)
        return await self._mapper.run(parent, task, inputs)


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
