"""EnginePool: a Celery pool of one process, with an event loop and a resident model in it.

Celery hands each message to `on_apply`. A thread then runs Celery's own tracer, so that its
signals, time limits and revocations work as ever, and in it the task waits for the job on the
runtime's event loop. Hundreds of jobs are thus in flight at once, and the engine puts all of
them into the same forward passes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NoReturn

from celery import signals
from celery.concurrency.base import BasePool, apply_target
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from gptflow.config import Settings
from gptflow.errors import EngineStopped, GPTFlowError, JobCancelled, JobTimeout
from gptflow.queue.crew import Crew
from gptflow.queue.handle import Handle
from gptflow.result import Result

logger = logging.getLogger(__name__)

_LAST_WORDS = 5.0
"""Seconds after the grace in which a worker tries to hand back to a Redis that does not answer."""


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
        self._crew: Crew | None = None
        self._given_up = False
        self._until = math.inf

    # Starting and stopping.

    def on_start(self) -> None:
        settings: Settings = self.app.settings
        _, nodename = self._initargs
        try:
            self._crew = Crew(
                settings,
                parts=self.app.parts,
                nodename=nodename,
                concurrency=self.limit,
                run_alone=self._run_alone,
                idle=lambda: not self._jobs,
                give_up=self._give_up,
            )
        except GPTFlowError as error:
            _refuse(error)
        self._threads = ThreadPoolExecutor(self.limit + 1, thread_name_prefix="gptflow-job")
        self.app.engine_pool = self
        # Celery stops the pool only after the queues, which may take it a while.
        signals.worker_shutting_down.connect(self._take_no_more, weak=True)

    def did_start_ok(self) -> bool:
        # Called once the queues are being read: from here on, the worker is ready.
        assert self._crew is not None
        self._crew.start()
        model = self._crew.engine.model
        logger.info(
            "Ready: %s on %s%s, %d messages at once, plugins %s.",
            model.id,
            model.device,
            f" ({model.dtype})" if model.dtype else "",
            self.limit,
            ", ".join(self._crew.record.plugins) or "none",
        )
        return True

    @property
    def has_room(self) -> bool:
        """Whether another message may be taken from the queues."""
        return self._crew is not None and self._crew.room > 0

    def _take_no_more(self, **_: Any) -> None:
        # From the signal on: a server that does not answer may hold Celery up for seconds.
        self._until = min(self._until, time.monotonic() + self.app.settings.grace)
        if self._crew is not None:
            self._crew.take_no_more()

    def on_stop(self) -> None:
        """Let what runs come to its end, and hand back what does not in time.

        Each message is acknowledged as it ends.
        """
        if self._crew is None:
            return
        self._take_no_more()
        while jobs := tuple(self._jobs.values()):
            wait([job.done for job in jobs], timeout=0.2, return_when=FIRST_COMPLETED)
            _drain_hub()
            if time.monotonic() > self._until:
                self._crew.dispatcher.hurry(_LAST_WORDS)
                self._hand_back()
        self._threads.shutdown()
        _drain_hub()
        crew, self._crew = self._crew, None
        crew.close()

    def on_terminate(self) -> None:
        """Stop at once; what runs is handed back."""
        self._hand_back()
        self.on_stop()

    def _hand_back(self) -> None:
        for job in tuple(self._jobs.values()):
            job.settle(EngineStopped("The worker was stopped."))

    def _give_up(self) -> None:
        """End the process as SIGTERM does, with an exit code: its engine has stopped for good."""
        if self._given_up:
            return
        self._given_up = True
        logger.critical("The engine has stopped; so does the worker.")
        self._take_no_more()
        self._hand_back()
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
        assert self._crew is not None
        job = _Job(str(correlation_id))
        self._jobs[job.handle.number] = job
        call_later = self._crew.runtime.call_later
        if soft_timeout:
            stop = partial(self._on_limit, job, True, soft_timeout, timeout_callback)
            job.timers.append(call_later(soft_timeout, stop))
        if timeout:
            stop = partial(self._on_limit, job, False, timeout, timeout_callback)
            job.timers.append(call_later(timeout, stop))
        run = partial(apply_target, target, args, kwargs, callback, accept_callback)
        self._threads.submit(self._bridge, job, partial(run, pid=job.handle.number))

    def _run_alone(self, job_id: str) -> Future[None]:
        """Run a job past Celery's queues, for the feeder."""
        job = _Job(job_id)
        self._jobs[job.handle.number] = job
        logger.warning("Job %s runs alone: workers have died while it ran.", job_id)
        if self._crew is not None:
            self._crew.save_log()
        self._threads.submit(self._bridge, job, partial(self.run_here, job_id))
        return job.done

    def _bridge(self, job: _Job, run: Callable[[], Any]) -> None:
        self._here.job = job
        try:
            run()
        except Exception:
            logger.exception("Message %s failed.", job.id)
        finally:
            for cancel in job.timers:
                cancel()
            del self._jobs[job.handle.number]
            job.done.set_result(None)
            # The consumer only looks for a free place when it wakes up.
            _wake_hub()

    def refuse(self, job_id: str, task: str, error: GPTFlowError) -> None:
        """Put a message on record that cannot be run. Returns at once."""
        if (crew := self._crew) is not None:
            with contextlib.suppress(RuntimeError):  # stopped: the log has it
                self._threads.submit(crew.dispatcher.refuse, job_id, task, error)

    def run_here(self, message: Any, signature: Any = None) -> tuple[Result | None, bool]:
        """Run a message in this bridge thread: the body of the Celery task.

        Returns:
            The result, if there was something to do, and whether Celery has settled the
            message by itself, so that its record of why must stand.
        """
        crew = self._crew
        assert crew is not None
        job: _Job = self._here.job
        if not crew.engine.healthy:
            self._give_up()
        if crew.stopping:
            crew.dispatcher.turn_away(message, signature)
            return None, job.settled
        return crew.dispatcher.run(message, job.handle, signature), job.settled

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
        if self._crew is not None:
            info |= self._crew.describe() | {"messages": len(self._jobs)}
        return info


class _Job:
    """A message between `on_apply` and the end of its thread."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.handle = Handle()
        self.settled = False
        self.timers: list[Callable[[], None]] = []
        self.done: Future[None] = Future()

    def settle(self, reason: GPTFlowError) -> None:
        """Stop it on behalf of Celery, which has told its tools why already."""
        self.settled = True
        self.handle.stop(reason)


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
