"""Presence: a worker's signs of life, and its ear for cancellations.

Every few seconds it renews the worker's record, asks whether what runs here was cancelled
(an announcement may get lost), and enqueues the delayed messages whose time has come. Once the
engine has stopped for good, it takes the record away instead, and says so.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis

from gptflow.errors import BrokerUnavailable, JobCancelled
from gptflow.queue.redis_store import RedisStore
from gptflow.queue.runtime import Runtime
from gptflow.transport import WorkerRecord

logger = logging.getLogger(__name__)

BEAT = 2.0
"""Seconds between two signs of life."""

_LISTEN = 0.5


class Presence:
    """Runs in a thread of its own from `start` to `stop`.

    Args:
        on_engine_stopped: called at each beat that finds the engine stopped for good.
    """

    def __init__(
        self,
        store: RedisStore,
        runtime: Runtime,
        record: WorkerRecord,
        on_engine_stopped: Callable[[], None],
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._record = record
        self._on_engine_stopped = on_engine_stopped
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gptflow-presence", daemon=True)

    def start(self) -> None:
        """Say that the worker is ready."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Say that the worker has stopped."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._store.withdraw(self._record.name)
        except BrokerUnavailable as error:
            logger.warning("%s The worker's record will expire.", error.message)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (BrokerUnavailable, redis.RedisError, OSError) as error:
                logger.warning("Waiting for Redis: %s", type(error).__name__)
            except Exception as error:  # noqa: BLE001  a silent worker's jobs are claimed again
                logger.error("A sign of life failed: %s.", type(error).__name__)
            self._stopping.wait(BEAT)

    def _listen(self) -> None:
        """Beat and obey until the connection breaks or the worker stops."""
        with self._store.client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(self._store.keys.cancels)
            next_beat = 0.0
            while not self._stopping.is_set():
                if time.monotonic() >= next_beat:
                    self._beat()
                    next_beat = time.monotonic() + BEAT
                message = channel.get_message(timeout=_LISTEN)
                if message is not None:
                    self._cancel(str(message["data"]))

    def _beat(self) -> None:
        if self._runtime.engine.healthy:
            self._announce()
            self._store.release_delayed()
        else:
            self._on_engine_stopped()
            self._store.withdraw(self._record.name)
        if running := self._runtime.running():
            for job_id in self._store.renew(running):
                self._cancel(job_id)

    def _announce(self) -> None:
        runtime = self._runtime
        self._record = dataclasses.replace(
            self._record,
            in_flight=runtime.in_flight,
            peak_in_flight=runtime.peak_in_flight,
            stats=self._stats(),
        )
        self._store.announce(self._record)

    def _stats(self) -> Mapping[str, Any]:
        try:
            return dict(self._runtime.engine.stats())
        except Exception as error:  # noqa: BLE001  a gauge must not cost the worker its record
            logger.error("The engine's counters failed: %s.", type(error).__name__)
            return self._record.stats

    def _cancel(self, job_id: str) -> None:
        if self._runtime.stop(job_id, JobCancelled(f"Job {job_id} was cancelled.")):
            logger.info("Job %s is cancelled.", job_id)
