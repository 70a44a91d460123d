"""Presence: a worker's signs of life, and its ear for what is announced.

It renews the leases of what runs here, and the worker's own record; it brings back what other
workers have lost; and it listens for cancellations and for new jobs. Once the engine has stopped,
or hangs, it does none of this any more, so that others take over.
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
from gptflow.queue.dispatcher import Dispatcher
from gptflow.queue.last_lines import LastLines
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.redis_store import RedisStore
from gptflow.queue.runtime import Runtime
from gptflow.transport import WorkerRecord

logger = logging.getLogger(__name__)

ANNOUNCE = 2.0
"""Seconds between two renewals of the worker's record."""

REAP = 1.0
"""Seconds between two looks for what got lost."""

_LISTEN = 0.2


class Presence:
    """Runs in threads of its own from `start` to `stop`.

    Args:
        lease: seconds that a claim lasts; it is renewed three times as often.
        wake: called when there are new jobs.
        on_engine_stopped: called at each look that finds the engine stopped for good.
        go_on: enqueues what follows ended jobs, where whoever ended them did not.

    Attributes:
        contact: when the ledger last answered, as `time.monotonic` has it.
    """

    def __init__(
        self,
        store: RedisStore,
        ledger: RedisLedger,
        dispatcher: Dispatcher,
        runtime: Runtime,
        record: WorkerRecord,
        *,
        lease: float,
        wake: Callable[[], None],
        on_engine_stopped: Callable[[], None],
        go_on: Callable[[], object] = lambda: None,
    ) -> None:
        self.log = LastLines()
        self.contact = float("-inf")
        self._store = store
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._runtime = runtime
        self._record = record
        self._wake = wake
        self._on_engine_stopped = on_engine_stopped
        self._go_on = go_on
        self._has_reaped = False
        self._silent = False
        self._stopping = threading.Event()
        self._ear = threading.Thread(target=self._listen, name="gptflow-ear", daemon=True)
        self._heart = threading.Thread(target=self._live, name="gptflow-heart", daemon=True)
        # Each with the seconds between two calls.
        self._duties: tuple[tuple[float, Callable[[], None]], ...] = (
            (lease / 3, self._renew),
            (ANNOUNCE, self._announce),
            (min(REAP, lease / 3), self._reap),
        )

    def start(self) -> None:
        """Say that the worker is ready."""
        self.log.attach()
        self._announce()
        self._ear.start()
        self._heart.start()

    def stop(self) -> None:
        """Say that the worker has stopped."""
        self._stopping.set()
        for thread in (self._heart, self._ear):
            if thread.is_alive():
                thread.join()
        self.log.detach()
        if self._silent:
            logger.warning("Redis does not answer; the worker's record will expire.")
            return
        try:
            self._ledger.withdraw(self._record.name)
        except BrokerUnavailable as error:
            logger.warning("%s The worker's record will expire.", error.message)

    def _live(self) -> None:
        due = [0.0 for _ in self._duties]
        while not self._stopping.is_set():
            for number, (seconds, duty) in enumerate(self._duties):
                if time.monotonic() >= due[number] and not self._stopping.is_set():
                    self._attempt(duty)
                    due[number] = time.monotonic() + seconds
            self._stopping.wait(max(0.0, min(due) - time.monotonic()))

    def _attempt(self, duty: Callable[[], None]) -> None:
        try:
            duty()
            self._silent = False
        except BrokerUnavailable as error:
            self._silent = True
            logger.warning("Waiting for Redis: %s", error.message)
        except Exception as error:  # noqa: BLE001  a silent worker's jobs are claimed again
            logger.error("A sign of life failed: %s.", type(error).__name__)

    def _renew(self) -> None:
        claims = {claim.job_id: claim for claim in self._dispatcher.claims()}
        if not claims:
            return
        for job_id in self._ledger.beat(list(claims.values())):
            lost = JobCancelled(f"Job {job_id} was cancelled.")
            if self._dispatcher.stop(job_id, lost, claim=claims[job_id]):
                logger.info("Job %s was cancelled, or given to another worker.", job_id)

    def save_log(self) -> None:
        """Put the log where it is found if this process dies of what it does next."""
        try:
            self._ledger.announce(self._record, self.log.lines())
        except BrokerUnavailable as error:
            logger.warning("%s What this worker has logged is not kept.", error.message)

    def _announce(self) -> None:
        if not self._runtime.engine.healthy:
            self._on_engine_stopped()
            self._ledger.withdraw(self._record.name)
            return
        self._record = dataclasses.replace(
            self._record,
            in_flight=self._runtime.in_flight,
            peak_in_flight=self._runtime.peak_in_flight,
            stats=self._stats(),
        )
        self._ledger.announce(self._record, self.log.lines())

    def _reap(self) -> None:
        reaped = self._ledger.reap(regular=self._has_reaped)
        self._has_reaped = True
        self.contact = time.monotonic()
        if any(reaped):
            logger.info(
                "Brought back: %d jobs of silent workers, %d unanswered, %d delayed; %d are dead.",
                reaped.leases,
                reaped.doorbells,
                reaped.delayed,
                reaped.dead,
            )
        self._go_on()

    def _listen(self) -> None:
        """Obey announcements until the worker stops."""
        keys = self._store.keys
        while not self._stopping.is_set():
            try:
                with self._store.client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(keys.cancels, keys.wake)
                    while not self._stopping.is_set():
                        message = channel.get_message(timeout=_LISTEN)
                        if message is None:
                            continue
                        if message["channel"] == keys.wake:
                            self._wake()
                        else:
                            self._cancel(str(message["data"]))
            except (BrokerUnavailable, redis.RedisError, OSError) as error:
                logger.warning("Waiting for Redis: %s", type(error).__name__)
                self._stopping.wait(1.0)

    def _stats(self) -> Mapping[str, Any]:
        try:
            return dict(self._runtime.engine.stats())
        except Exception as error:  # noqa: BLE001  a gauge must not cost the worker its record
            logger.error("The engine's counters failed: %s.", type(error).__name__)
            return self._record.stats

    def _cancel(self, job_id: str) -> None:
        if self._dispatcher.stop(job_id, JobCancelled(f"Job {job_id} was cancelled.")):
            logger.info("Job %s is cancelled.", job_id)
