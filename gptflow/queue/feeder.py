"""Feeder: rings for jobs as the engine has room for them.

What waits, waits in the ledger, in its order; Celery's queues hold no more than the workers can
take at once. So an urgent job overtakes all that wait, however many they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from gptflow.errors import BrokerUnavailable
from gptflow.queue.redis_ledger import Fed, RedisLedger

logger = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks where nobody said that there is something; announcements get lost."""

_GAP = 0.008
"""Seconds between two looks at least: what ends in between is replaced with one call."""

_SHORTAGE = 0.02
"""Seconds to wait where other workers were faster."""


class Feeder:
    """Runs in a thread of its own from `start` to `stop`.

    Args:
        worker: its name.
        room: how many items the worker can take now.
        reserve: items of the room that only interactive jobs may use.
        idle: whether nothing runs.
        alone: set while this worker takes nothing because a job has to run alone.
        run_alone: runs the job of this id.
        hold: seconds for which no other worker takes a job to run alone, renewed in time.
    """

    def __init__(
        self,
        ledger: RedisLedger,
        worker: str,
        *,
        room: Callable[[], int],
        reserve: int,
        idle: Callable[[], bool],
        alone: threading.Event,
        run_alone: Callable[[str], Future[None]],
        hold: float,
    ) -> None:
        self._ledger = ledger
        self._worker = worker
        self._room = room
        self._reserve = reserve
        self._idle = idle
        self._alone = alone
        self._run_alone = run_alone
        self._hold = hold
        self._some = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gptflow-feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that there are jobs, or that there is room again."""
        if not self._some.is_set():  # setting it takes a lock, and each row of a batch says so
            self._some.set()

    def stop(self) -> None:
        """Take nothing more. What was rung for may still come."""
        self._stopping.set()
        self._some.set()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            self._some.wait(wait)
            self._some.clear()
            try:
                wait = self._feed()
            except BrokerUnavailable as error:
                logger.warning("%s Trying again.", error.message)
                wait = _TICK
            except Exception as error:  # noqa: BLE001  a worker that takes nothing is no worker
                logger.error("Taking jobs failed: %s.", type(error).__name__)
                wait = _TICK
            self._stopping.wait(_GAP)

    def _feed(self) -> float:
        """Ring for what there is room for. Returns the seconds to wait before the next look."""
        room = self._room()
        if room <= 0 or self._stopping.is_set():
            return _TICK
        fed = self._ledger.feed(room, self._reserve)
        if fed.suspects:
            self._see_to_suspects()
        return _SHORTAGE if _is_short(fed, room) else _TICK

    def _see_to_suspects(self) -> None:
        """Run jobs that have to be alone, unless another worker sees to them."""
        try:
            while not self._stopping.is_set():
                idle = self._alone.is_set() and self._idle()
                job_id = self._ledger.take_suspect(self._worker, self._hold, idle=idle)
                if job_id is None:
                    return
                self._alone.set()
                if job_id:
                    self._watch(self._run_alone(job_id))
                else:
                    self._some.wait(_SHORTAGE)
                    self._some.clear()
        finally:
            self._alone.clear()

    def _watch(self, alone: Future[None]) -> None:
        """Keep the other workers from taking suspects until this one has ended."""
        renewed = time.monotonic()
        while not alone.done():
            self._some.wait(_SHORTAGE)
            self._some.clear()
            if time.monotonic() - renewed > self._hold / 3:
                self._ledger.take_suspect(self._worker, self._hold, idle=False)
                renewed = time.monotonic()


def _is_short(fed: Fed, room: int) -> bool:
    return fed.more and fed.jobs < room
