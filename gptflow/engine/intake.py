"""The intake: where the callers' threads meet the engine's."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from gptflow.engine.pending import Pending
from gptflow.errors import EngineError, EngineStopped, GPTFlowError
from gptflow.heads import Raw


class Taken(NamedTuple):
    """What has changed since the last look."""

    arrived: deque[Pending]
    cancelled: deque[Pending]
    retired: deque[str]


class Intake:
    """Requests that arrive or are cancelled, and what else is asked of the engine's thread.

    Attributes:
        stopped: why nothing is taken in any more, or None.
    """

    def __init__(self) -> None:
        self.stopped: EngineStopped | None = None
        self._changed = threading.Condition()
        self._arrived: deque[Pending] = deque()
        self._cancelled: deque[Pending] = deque()
        self._retired: deque[str] = deque()
        self._in_flight: dict[str, Pending] = {}
        self._traces: list[Future[dict[str, Any]]] = []

    def __len__(self) -> int:
        """How many requests have no answer yet."""
        return len(self._in_flight)

    @property
    def arrived(self) -> int:
        """How many the engine has not looked at yet."""
        return len(self._arrived)

    def put(self, pending: Pending) -> None:
        """Hand a request over.

        Raises:
            EngineStopped: nothing is taken in any more.
            EngineError: a request of this id is in flight.
        """
        id_ = pending.request.id
        with self._changed:
            refused: GPTFlowError | None = self.stopped
            if refused is None and id_ in self._in_flight:
                refused = EngineError(f"A request {id_!r} is in flight already.")
            if refused is not None:
                raise refused
            self._in_flight[id_] = pending
            self._arrived.append(pending)
            # Neither holds the request: its owner may keep the future for ever.
            pending.leave = functools.partial(self._leave, id_)
            pending.future.add_done_callback(functools.partial(self._settled, id_))
            self._changed.notify()

    def cancel(self, id_: str) -> bool:
        """Cancel a request's future; False if it had ended."""
        with self._changed:
            pending = self._in_flight.get(id_)
        return pending is not None and pending.future.cancel()

    def retire(self, lora: str) -> None:
        """Say that no adapter has some LoRA weights any more, by their key."""
        with self._changed:
            self._retired.append(lora)
            self._changed.notify()

    def trace(self) -> Future[dict[str, Any]]:
        """A future for the trace of the next step."""
        future: Future[dict[str, Any]] = Future()
        with self._changed:
            if self.stopped is None:
                self._traces.append(future)
                return future
        future.set_exception(self.stopped)
        return future

    def take_traces(self) -> list[Future[dict[str, Any]]]:
        """Who wants to see this step."""
        with self._changed:
            asked, self._traces = self._traces, []
        return asked

    def take(self, busy: Callable[[], bool]) -> Taken | None:
        """What has changed; None to stop. It waits for a change unless the engine is `busy`."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._retired or self.stopped or busy()):
                self._changed.wait()
            if self.stopped is not None:
                return None
            taken = Taken(self._arrived, self._cancelled, self._retired)
            self._arrived, self._cancelled, self._retired = deque(), deque(), deque()
        return taken

    def stop(self, reason: EngineStopped) -> None:
        """Take nothing in from now on."""
        with self._changed:
            self.stopped = self.stopped or reason
            self._changed.notify()

    def left(self) -> list[Future[Any]]:
        """The futures that nobody is going to settle once the engine has stopped."""
        with self._changed:
            pendings = [*self._in_flight.values(), *(p for p in self._cancelled if not p.closed)]
            return [*(pending.future for pending in pendings), *self._traces]

    def _leave(self, id_: str) -> None:
        """A request is about to have its answer: another one may take its id."""
        with self._changed:
            self._in_flight.pop(id_, None)

    def _settled(self, id_: str, future: Future[Raw]) -> None:
        """Its owner has cancelled a request, if it is still here."""
        with self._changed:
            pending = self._in_flight.get(id_)
            if pending is None or pending.future is not future:
                return
            del self._in_flight[id_]
            if future.cancelled():
                self._cancelled.append(pending)
                self._changed.notify()
