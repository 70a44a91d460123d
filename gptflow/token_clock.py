"""TokenClock: gives out answers that are known already at the pace of a model that decodes them.

For load tests: as many sequences run at once as the clock has slots, each of them at the same
pace, and they can be streamed and cancelled, at next to no cost for the processor.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

from gptflow.errors import EngineStopped
from gptflow.heads import Raw
from gptflow.request import Delta

_LONGEST = 1.0
"""Seconds between two steps at most while something runs, so that a watchdog sees it live."""


@dataclasses.dataclass(slots=True, eq=False)
class _Sequence:
    """An answer under way.

    Attributes:
        tokens: how many it has.
        pieces: the text of each token, where it is streamed; else empty.
        told: how many of the pieces have been given out.
    """

    id: str
    future: Future[Raw]
    answer: Raw
    tokens: int
    pieces: Sequence[str]
    samples: int
    on_delta: Callable[[Delta], None] | None
    started: float = 0.0
    told: int = 0


class TokenClock:
    """Runs sequences on one thread, which sleeps while there are none.

    Args:
        pace: tokens a second of each sequence.
        slots: sequences that run at once; the others wait their turn.
    """

    def __init__(self, pace: float, slots: int) -> None:
        self.steps = 0
        self._pace = pace
        self._slots = slots
        self._waiting: collections.deque[_Sequence] = collections.deque()
        self._running: dict[str, _Sequence] = {}
        self._due: list[tuple[float, int, _Sequence]] = []
        self._numbers = itertools.count()
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def run(
        self,
        id: str,
        answer: Raw,
        tokens: int,
        pieces: Sequence[str] = (),
        *,
        samples: int = 1,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> Future[Raw]:
        """Give out an answer, token by token; `on_delta` is told each piece of each sample."""
        future: Future[Raw] = Future()
        sequence = _Sequence(id, future, answer, max(1, tokens), pieces, samples, on_delta)
        with self._change:
            if self._closed:
                future.set_exception(EngineStopped("The engine has been closed."))
                return future
            self._waiting.append(sequence)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="gptflow-token-clock", daemon=True
                )
                self._thread.start()
            self._change.notify()
        return future

    def cancel(self, id: str) -> bool:
        """Stop a sequence, whether it runs or waits. False if there is no such."""
        with self._change:
            found = self._running.pop(id, None)
            if found is None:
                found = next((each for each in self._waiting if each.id == id), None)
                if found is None:
                    return False
                self._waiting.remove(found)
            self._change.notify()
        return found.future.cancel()

    def close(self) -> None:
        """Stop; what has not ended fails with `EngineStopped`."""
        with self._change:
            self._closed = True
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._change.notify()
        for sequence in left:
            _end(sequence.future, error=EngineStopped("The engine has been closed."))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._admit()
                now = time.monotonic()
                if self._closed:
                    return
                if not self._due or self._due[0][0] > now:
                    wait = min(self._due[0][0] - now, _LONGEST) if self._due else None
                    self._change.wait(wait)
                    self.steps += 1
                    continue
                ready = self._take(now)
                self.steps += 1
            for sequence, pieces, ended in ready:
                self._tell(sequence, pieces)
                if ended:
                    _end(sequence.future, answer=sequence.answer)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            sequence = self._waiting.popleft()
            sequence.started = time.monotonic()
            self._running[sequence.id] = sequence
            self._plan(sequence)

    def _plan(self, sequence: _Sequence) -> None:
        """Say when a sequence is to be looked at next: at its next piece, or at its end."""
        next_token = sequence.told + 1 if sequence.told < len(sequence.pieces) else sequence.tokens
        when = sequence.started + next_token / self._pace
        heapq.heappush(self._due, (when, next(self._numbers), sequence))

    def _take(self, now: float) -> list[tuple[_Sequence, Sequence[str], bool]]:
        """What is due: each sequence with its new pieces, and whether it has ended."""
        ready = []
        while self._due and self._due[0][0] <= now:
            _, _, sequence = heapq.heappop(self._due)
            if self._running.get(sequence.id) is not sequence:
                continue  # cancelled
            # As many as the time allows: a clock that was held up catches up.
            reached = int((now - sequence.started) * self._pace + 1e-6)
            pieces = sequence.pieces[sequence.told : reached]
            sequence.told += len(pieces)
            ended = reached >= sequence.tokens
            if ended:
                del self._running[sequence.id]
            else:
                self._plan(sequence)
            ready.append((sequence, pieces, ended))
        return ready

    def _tell(self, sequence: _Sequence, pieces: Sequence[str]) -> None:
        if sequence.on_delta is None or not pieces:
            return
        for sample in range(sequence.samples):
            sequence.on_delta(Delta("".join(pieces), sample))


def _end(future: Future[Raw], *, answer: Raw | None = None, error: Exception | None = None) -> None:
    try:
        if error is not None:
            future.set_exception(error)
        elif answer is not None:
            future.set_result(answer)
    except InvalidStateError:  # its caller has cancelled it
        pass
