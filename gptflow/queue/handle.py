"""Handle: one message in flight, and how to stop it from another thread."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import Any

from gptflow.errors import GPTFlowError

_numbers = itertools.count(1)


class Handle:
    """Links whoever wants to stop a message with whoever runs it.

    Attributes:
        number: unique in this process; Celery uses it where prefork has a process id.
        stopped: why it was stopped; None while it was not.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.stopped: GPTFlowError | None = None
        self._future: Future[Any] | None = None
        self._lock = threading.Lock()

    def attach(self, future: Future[Any]) -> None:
        """Name what runs; it is cancelled at once if a stop came first."""
        with self._lock:
            self._future = future
            stopped = self.stopped
        if stopped is not None:
            future.cancel()

    def stop(self, reason: GPTFlowError) -> bool:
        """Cancel what runs, wherever it is; the first reason stands. False if it has ended."""
        with self._lock:
            if self.stopped is None:
                self.stopped = reason
            future = self._future
        return future is None or future.cancel()
