"""EnginePool: a Celery pool of one process, with an event loop and a resident model in it.

Celery hands each message to `on_apply`. A thread then runs Celery's own tracer, so that its
signals, time limits and revocations work as ever, and in it the task waits for the job on the
runtime's event loop. Hundreds of jobs are thus in flight at once, and the engine puts all of
them into the same forward passes.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NoReturn

from celery.concurrency.base import BasePool, apply_target
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from gptflow.config import Settings
from gptflow.errors import EngineStopped, GPTFlowError, JobCancelled, JobTimeout
from gptflow.plugins import Registry
from gptflow.queue.handle import Handle
from gptflow.queue.presence import Presence
from gptflow.queue.runtime import Runtime
from gptflow.queue.transport import RedisTransport
from gptflow.request import Engine
from gptflow.result import Result
from gptflow.transport import WorkerRecord

logger = logging.getLogger(__name__)

LOADER = "gptflow.queue.engine_factory:load_engine"


class EnginePool(BasePool):
    """Runs messages on the resident model. `limit` is how many may be in flight."""

    signal_safe = False
    task_join_will_block = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._initargs: tuple[Any, str] = options["initargs"]
        self._jobs: dict[int, _Job] = {}
        self._here = threading.local()
        self._runtime: Runtime | None = None
        self._given_up = False

    # Starting and stopping.

    def on_start(self) -> None:
        settings: Settings = self.app.settings
        try:
            registry = Registry.load(settings.plugins)
            registry.require_all()
            self._transport = RedisTransport(settings)
            self._transport.ping()
            self._engine: Engine = pkgutil.resolve_name(LOADER)(settings)
        except GPTFlowError as error:
            _refuse(error)
        _, nodename = self._initargs
        self._record = _describe(self._engine, registry, nodename)
        runtime = Runtime(
            self._engine,
            registry,
            self._transport,
            self._transport.store,
            settings=settings,
            name=self._record.name,
            concurrency=self.limit,
        )
        try:
            runtime.setup()
        except GPTFlowError as error:
            runtime.close()
            self._engine.close()
            _refuse(error)
        self._runtime = runtime
        self._presence = Presence(self._transport.store, runtime, self._record, self._give_up)
        self._threads = ThreadPoolExecutor(self.limit, thread_name_prefix="gptflow-job")
        self.app.engine_pool = self

    def did_start_ok(self) -> bool:
        # Called once the queues are being read: from here on, the worker is ready.
        self._presence.start()
        model = self._engine.model
        logger.info(
            "Ready: %s on %s%s, %d messages at once, plugins %s.",
            model.id,
            model.device,
            f" ({model.dtype})" if model.dtype else "",
            self.limit,
            ", ".join(self._record.plugins) or "none",
        )
        return True

    def on_stop(self) -> None:
        """Let what runs come to its end, acknowledging each message as it does."""
        if self._runtime is None:
            return
        while jobs := tuple(self._jobs.values()):
            wait([job.done for job in jobs], timeout=0.2, return_when=FIRST_COMPLETED)
            _drain_hub()
        self._threads.shutdown()
        _drain_hub()
        runtime, self._runtime = self._runtime, None
        runtime.close()
        self._presence.stop()
        self._engine.close()
        self._transport.close()

    def on_terminate(self) -> None:
        """Stop at once; what runs ends as `EngineStopped`."""
        for job in tuple(self._jobs.values()):
            job.settle(EngineStopped("The worker was stopped."))
        self.on_stop()

    def _give_up(self) -> None:
        """End the process as SIGTERM does, with an exit code: its engine has stopped for good."""
        if self._given_up:
            return
        self._given_up = True
        logger.critical("The engine has stopped; so does the worker.")
        worker_state.should_stop = EngineStopped.exit_code  # type: ignore[assignment]
        _wake_hub()

    # Messages.

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[[bool, float], Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        **_: Any,
    ) -> None:
        assert self._runtime is not None
        job = _Job(str(correlation_id))
        self._jobs[job.handle.number] = job
        if soft_timeout:
            stop = partial(self._on_limit, job, True, soft_timeout, timeout_callback)
            job.timers.append(self._runtime.call_later(soft_timeout, stop))
        if timeout:
            stop = partial(self._on_limit, job, False, timeout, timeout_callback)
            job.timers.append(self._runtime.call_later(timeout, stop))
        run = partial(apply_target, target, args, kwargs, callback, accept_callback)
        job.done = self._threads.submit(self._bridge, job, run)

    def _bridge(self, job: _Job, run: Callable[..., None]) -> None:
        self._here.job = job
        try:
            run(pid=job.handle.number)
        except Exception:
            logger.exception("Celery's tracer failed on message %s.", job.id)
        finally:
            for cancel in job.timers:
                cancel()
            del self._jobs[job.handle.number]
            # The consumer only looks for a free place when it wakes up.
            _wake_hub()

    def run_here(self, envelope: Any) -> tuple[Result | None, bool]:
        """Run an envelope in this bridge thread: the body of the Celery task.

        Returns:
            The result, if there was something to do, and whether Celery has settled the
            message by itself, so that its record of why must stand.
        """
        assert self._runtime is not None
        job: _Job = self._here.job
        if not self._engine.healthy:
            self._give_up()
            self._runtime.hand_back(envelope)
            return None, job.settled
        return self._runtime.run(envelope, job.handle), job.settled

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Stop one message, for `revoke(terminate=True)` or in a cold shutdown."""
        if (job := self._jobs.get(pid)) is not None:
            revoked = job.id in worker_state.revoked
            job.settle(
                JobCancelled(f"Job {job.id} was revoked.")
                if revoked
                else EngineStopped("The worker was stopped.")
            )

    def _on_limit(
        self,
        job: _Job,
        soft: bool,
        seconds: float,
        timeout_callback: Callable[[bool, float], Any] | None,
    ) -> None:
        reason = JobTimeout(f"Job {job.id} ran into its time limit of {seconds:g} seconds.")
        if soft:
            job.handle.stop(reason)
        else:
            job.settle(reason)
        if timeout_callback is not None:
            timeout_callback(soft, seconds)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()  # type: ignore[misc]
        if (runtime := self._runtime) is not None:
            info |= {
                "in_flight": runtime.in_flight,
                "peak_in_flight": runtime.peak_in_flight,
                "messages": len(self._jobs),
                "worker": self._record.name,
                "model": self._record.model,
                "plugins": list(self._record.plugins),
                "engine": dict(self._engine.stats()),
            }
        return info


class _Job:
    """A message between `on_apply` and the end of its thread."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.handle = Handle()
        self.settled = False
        self.timers: list[Callable[[], None]] = []
        self.done: Future[None]

    def settle(self, reason: GPTFlowError) -> None:
        """Stop it on behalf of Celery, which has told its tools why already."""
        self.settled = True
        self.handle.stop(reason)


def _describe(engine: Engine, registry: Registry, nodename: str) -> WorkerRecord:
    model = engine.model
    return WorkerRecord(
        # A restarted worker has its predecessor's node name and none of its jobs.
        name=f"{nodename}.{uuid.uuid4().hex[:6]}",
        pid=os.getpid(),
        model=model.id,
        plugins=tuple(registry.plugins),
        started=time.time(),
        stats=dict(engine.stats()),
    )


def _refuse(error: GPTFlowError) -> NoReturn:
    """Do not start; Celery ends the process with the error's exit code."""
    logger.critical("The worker does not start: %s", error)
    raise SystemExit(error.exit_code)


def _drain_hub() -> None:
    """Run what the hub was asked to: nobody turns it any more, and it holds acknowledgements."""
    hub: Any = get_event_loop()
    if hub is not None:
        for callback in hub._pop_ready():
            callback()


def _wake_hub() -> None:
    if (hub := get_event_loop()) is not None:
        hub.call_soon(_nothing)


def _nothing() -> None:
    pass
