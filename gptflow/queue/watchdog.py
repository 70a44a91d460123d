"""Watchdog: notices that the engine hangs.

A thread that hangs inside a library cannot be interrupted, and jobs that are renewed for ever
are never given to another worker. So the process ends itself, and whatever supervises it starts
another; its leases run out, and its jobs are run again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""`EX_TEMPFAIL` of sysexits.h: try again."""


class Watchdog:
    """Looks at the engine's counters from a thread of its own.

    Args:
        stats: the engine's; see `gptflow.request.Engine.stats`.
        seconds: without a step, with work waiting, after which it hangs.
        end: ends the process.

    Attributes:
        stalled: for how many seconds the engine has had work and has not made a step.
    """

    def __init__(
        self,
        stats: Callable[[], Mapping[str, Any]],
        *,
        seconds: float,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.stalled = 0.0
        self._stats = stats
        self._seconds = seconds
        self._end = end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gptflow-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        pause, steps = self._seconds / 10, -1
        looked = time.monotonic()
        while not self._stopping.wait(pause):
            # A process that was frozen for a while has not hung: a look counts for two at most.
            passed = min(time.monotonic() - looked, 2 * pause)
            looked = time.monotonic()
            try:
                stats = self._stats()
            except Exception as error:  # noqa: BLE001  the dog must not die of it
                logger.error("The engine's counters failed: %s.", type(error).__name__)
                continue
            if "steps" not in stats:  # an engine that is elsewhere has time limits of its own
                continue
            before, steps = steps, int(stats["steps"])
            busy = stats.get("running", 0) or stats.get("waiting", 0)
            self.stalled = self.stalled + passed if busy and steps == before else 0.0
            if self.stalled > self._seconds:
                logger.critical(
                    "The engine has not moved for %g seconds with work waiting; "
                    "the worker ends itself.",
                    self._seconds,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(EXIT_CODE)
                return
