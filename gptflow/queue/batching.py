"""Batcher: what many threads ask of the server at the same time, in one round trip."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from gptflow.queue.scripts import Call

_MOST = 256
"""Calls of one round trip, so that nobody waits long for the others."""

_LINGER = 0.002
"""Seconds to wait for more calls where others were being made a moment ago."""


class Batcher:
    """Makes calls from a thread of its own; whatever has gathered meanwhile goes together.

    Args:
        run_all: makes the calls in one round trip. Of its replies, those that are exceptions
            are raised where the call came from.
    """

    def __init__(self, run_all: Callable[[Sequence[Call]], Sequence[Any]]) -> None:
        self._run_all = run_all
        self._waiting: queue.SimpleQueue[tuple[Call, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gptflow-ledger", daemon=True)
        self._thread.start()

    def run(self, call: Call) -> Any:
        """The reply to a call. Blocks."""
        future: Future[Any] = Future()
        self._waiting.put((call, future))
        return future.result()

    def close(self) -> None:
        """Make the calls that are waiting, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        last_made = 0.0
        while (first := self._waiting.get()) is not None:
            if time.monotonic() - last_made < _LINGER:
                time.sleep(_LINGER)
            taken = [first]
            last = False
            while len(taken) < _MOST and not last:
                try:
                    entry = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    last = True
                else:
                    taken.append(entry)
            self._make(taken)
            last_made = time.monotonic()
            if last:
                return

    def _make(self, taken: Sequence[tuple[Call, Future[Any]]]) -> None:
        try:
            replies = self._run_all([call for call, _ in taken])
        except Exception as error:  # noqa: BLE001  whatever it is: they wait, and more will come
            for _, future in taken:
                future.set_exception(error)
            return
        for (_, future), reply in zip(taken, replies, strict=True):
            if isinstance(reply, BaseException):
                future.set_exception(reply)
            else:
                future.set_result(reply)
