"""Outcomes: how sequences and requests end, well or not.

Texts are decoded and futures resolved on a thread of their own, the finaliser, so that nobody's
callback holds up the model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gptflow.engine.baselines import Baselines
from gptflow.engine.events import Events
from gptflow.engine.pending import Pending, told
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Decoding, Readout, Sequence
from gptflow.engine.statistics import Statistics
from gptflow.errors import EngineError, GPTFlowError
from gptflow.request import Delta

log = logging.getLogger(__name__)


class Outcomes:
    """Frees what an ended sequence held, and tells those who waited for it."""

    def __init__(
        self, scheduler: Scheduler, baselines: Baselines, statistics: Statistics, events: Events
    ) -> None:
        self._scheduler = scheduler
        self._baselines = baselines
        self._statistics = statistics
        self._events = events
        self._finaliser = ThreadPoolExecutor(1, thread_name_prefix="gptflow-finaliser")

    def close(self) -> None:
        """Wait until all that has ended is told."""
        self._finaliser.shutdown()

    def later(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call something on the finaliser's thread."""
        self._finaliser.submit(call, *arguments)

    @contextlib.contextmanager
    def alone(self, sequence: Sequence) -> Iterator[None]:
        """What goes wrong inside ends whoever depends on this sequence, and no one else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  the requests' futures carry it
            ids = ", ".join(pending.request.id for pending in sequence.owners)
            self.abandon(sequence, told(error, "computing", ids))

    def end(self, sequence: Sequence) -> None:
        """Free a sequence's slot and answer the requests that waited for it alone.

        Raises:
            EngineError: what the model gave it is not a number.
        """
        if isinstance(sequence, Scoring | Readout) and sequence.spoiled:
            raise EngineError("The model's output for this request is not a number.")
        self._scheduler.remove(sequence)
        sequence.adapter = None  # the scores of a baseline are kept, and need it no more
        self._statistics.ended(sequence)
        for pending in sequence.owners:
            pending.open -= 1
            if pending.open == 0:
                pending.closed = True
                self._statistics.answered(pending)
                self._events.record_request("ended", pending.request)
                self.later(pending.resolve)
        sequence.owners = {}

    def abandon(self, sequence: Sequence, error: GPTFlowError) -> None:
        """Take a sequence out that has gone wrong, and fail the requests that wait for it."""
        if isinstance(sequence, Scoring):
            self._baselines.forget(sequence)
        owners, sequence.owners = sequence.owners, {}
        self._scheduler.remove(sequence, wipe=True)
        for pending in owners:
            self.fail(pending, error)

    def fail(self, pending: Pending, error: GPTFlowError) -> None:
        """Answer a request with an error, unless it has its answer."""
        if not pending.closed:
            self._drop(pending)
            self._statistics.failures[error.code] += 1
            self._events.record_request("failed", pending.request, error.code)
            self.later(pending.fail, error)

    def cancel(self, pending: Pending) -> None:
        """Stop what runs for a request whose future was cancelled."""
        if not pending.closed:
            self._drop(pending)
            self._statistics.cancelled += 1
            self._events.record_request("cancelled", pending.request)
            pending.future.set_running_or_notify_cancel()  # tells whoever waits for it

    def _drop(self, pending: Pending) -> None:
        """Stop all that runs for one request only."""
        pending.closed = True
        for sequence in pending.sequences:
            # It may have gone wrong already, with nobody having looked yet.
            self._scheduler.remove(sequence, wipe=True)
            sequence.owners = {}
        self._baselines.leave(pending)

    def emit(self, sequence: Decoding) -> None:
        """Pass on the text that has become certain."""
        if not (text := sequence.take_text()):
            return
        for pending in sequence.owners:
            if pending.request.on_delta is not None:
                self.later(_tell, pending, Delta(text, sequence.sample))


def _tell(pending: Pending, delta: Delta) -> None:
    """Pass on a piece of text, on the finaliser's thread."""
    if pending.future.cancelled() or pending.request.on_delta is None:
        return
    try:
        pending.request.on_delta(delta)
    except Exception:
        log.exception("on_delta of request %s raised", pending.request.id)
