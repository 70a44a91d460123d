"""MemoryTransport: a worker inside this process, for tests, notebooks and `--local`."""

from __future__ import annotations

import json
import logging
import os
import pkgutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gptflow.config import Settings
from gptflow.errors import GPTFlowError, JobCancelled
from gptflow.plugins import Registry
from gptflow.queue.handle import Handle
from gptflow.queue.memory_store import MemoryStore
from gptflow.queue.runtime import Runtime
from gptflow.queue.waiting import StoreTransport
from gptflow.request import Engine
from gptflow.result import Result
from gptflow.transport import WorkerRecord

logger = logging.getLogger(__name__)

LOADER = "gptflow.queue.engine_factory:load_engine"


class MemoryTransport(StoreTransport):
    """Runs what is submitted on threads of its own, by the rules of a real worker.

    Args:
        engine: what serves; it stays open. By default the settings' model is loaded when the
            first job arrives, and closed in the end.
        registry: by default the settings' plugins.
    """

    def __init__(
        self, settings: Settings, *, engine: Engine | None = None, registry: Registry | None = None
    ) -> None:
        super().__init__(settings, MemoryStore(self._publish, self._stop))
        self._given = engine
        self._registry = registry
        self._runtime: Runtime | None = None
        self._starting = threading.Lock()
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="gptflow-job")

    def workers(self) -> list[WorkerRecord]:
        """The worker in this process, once its model is loaded."""
        runtime = self._runtime
        if runtime is None:
            return []
        record = WorkerRecord(
            name=runtime.name,
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
        if runtime is not None:
            runtime.close()
            if self._given is None:
                runtime.engine.close()
        self._threads.shutdown()

    def _publish(self, wire: str) -> None:
        self._threads.submit(self._run, wire)

    def _stop(self, job_id: str) -> None:
        if self._runtime is not None:
            self._runtime.stop(job_id, JobCancelled(f"Job {job_id} was cancelled."))

    def _run(self, wire: str) -> None:
        data = json.loads(wire)
        try:
            self._started().run(data, Handle())
        except GPTFlowError as error:  # the model or a plugin could not be loaded
            self.store.end(Result.failure(data["id"], data["task"], error))
        except Exception:
            logger.exception("Job %s could not be run.", data["id"])

    def _started(self) -> Runtime:
        with self._starting:
            if self._runtime is None:
                self._started_at = time.time()
                settings = self.settings
                registry = self._registry or Registry.load(settings.plugins)
                self._runtime = Runtime(
                    self._given or pkgutil.resolve_name(LOADER)(settings),
                    registry,
                    self,
                    self.store,
                    settings=settings,
                    name="memory",
                    concurrency=settings.concurrency,
                )
            return self._runtime
