"""MemoryTransport: a worker inside this process, for tests, notebooks and `--local`."""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gptflow.config import Settings
from gptflow.errors import EngineStopped, GPTFlowError, JobCancelled
from gptflow.plugins import Registry
from gptflow.queue.dispatcher import Dispatcher
from gptflow.queue.handle import Handle
from gptflow.queue.memory_store import MemoryStore
from gptflow.queue.runtime import Runtime
from gptflow.queue.waiting import StoreTransport
from gptflow.request import Engine
from gptflow.result import Result
from gptflow.transport import WorkerRecord

logger = logging.getLogger(__name__)

LOADER = "gptflow.queue.engine_factory:load_engine"
_NAME = "memory"


class MemoryTransport(StoreTransport):
    """Runs what is submitted on threads of its own, by the rules of a real worker.

    Args:
        engine: what serves; it stays open. By default the settings' model is loaded when the
            first job arrives, and closed in the end.
        registry: by default the settings' plugins.
    """

    store: MemoryStore

    def __init__(
        self, settings: Settings, *, engine: Engine | None = None, registry: Registry | None = None
    ) -> None:
        self.store = MemoryStore(self._publish, self._stop)
        super().__init__(settings, self.store)
        self._given = engine
        self._registry = registry
        self._runtime: Runtime | None = None
        self._dispatcher: Dispatcher | None = None
        self._starting = threading.Lock()
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="gptflow-job")

    def workers(self) -> list[WorkerRecord]:
        """The worker in this process, once its model is loaded."""
        runtime = self._runtime
        if runtime is None:
            return []
        record = WorkerRecord(
            name=_NAME,
            pid=os.getpid(),
            model=runtime.engine.model.id,
            started=self._started_at,
            in_flight=runtime.in_flight,
            peak_in_flight=runtime.peak_in_flight,
            plugins=tuple(runtime.registry.plugins),
            stats=dict(runtime.engine.stats()),
        )
        return [record]

    def close(self) -> None:
        """Stop what runs; jobs that wait stay queued for ever."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._starting:
            runtime, self._runtime = self._runtime, None
            dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            for job_id in dispatcher.running():
                stopped = EngineStopped("The process that ran it was closed.")
                self.store.end(Result.failure(job_id, self.store.job(job_id).task, stopped))
        if runtime is not None:
            runtime.close()
        self._threads.shutdown()
        if dispatcher is not None:
            dispatcher.close()
        if runtime is not None and self._given is None:
            runtime.engine.close()

    def _publish(self, job_id: str) -> None:
        with contextlib.suppress(RuntimeError):  # closed: it stays queued for ever
            self._threads.submit(self._run, job_id)

    def _stop(self, job_id: str) -> None:
        if self._dispatcher is not None:
            self._dispatcher.stop(job_id, JobCancelled(f"Job {job_id} was cancelled."))

    def _run(self, job_id: str) -> None:
        try:
            self._started().run(job_id, Handle())
        except GPTFlowError as error:  # the model or a plugin could not be loaded
            task = self.store.job(job_id).task
            self.store.end(Result.failure(job_id, task, error))
        except Exception:
            logger.exception("Job %s could not be run.", job_id)

    def _started(self) -> Dispatcher:
        with self._starting:
            if self._dispatcher is None:
                self._started_at = time.time()
                settings = self.settings
                registry = self._registry or Registry.load(settings.plugins)
                self._runtime = Runtime(
                    self._given or pkgutil.resolve_name(LOADER)(settings),
                    registry,
                    self,
                    settings=settings,
                    concurrency=settings.concurrency,
                    most=sys.maxsize,
                )
                self._dispatcher = Dispatcher(
                    self._runtime, self.store, settings=settings, name=_NAME
                )
            return self._dispatcher
