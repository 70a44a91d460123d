"""Handles to what was submitted: a job, or a batch of many items of one task."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gptflow.result import Result, State
from gptflow.streamed_text import StreamedText
from gptflow.transport import BatchRecord, Event, JobRecord, Transport
from gptflow.validation import check_seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A submitted job. Its id is all there is to it: `Client.job(id)` makes another handle."""

    id: str
    _transport: Transport = dataclasses.field(repr=False, compare=False)

    @property
    def record(self) -> JobRecord:
        """What is known of it now."""
        return self._transport.job(self.id)

    @property
    def state(self) -> State:
        return self.record.state

    def wait(self, timeout: float | None = None) -> Result:
        """The job's end, whatever it is.

        Raises:
            JobTimeout: it did not end in `timeout` seconds; it goes on.
        """
        check_seconds(timeout)
        return self._transport.result(self.id, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """The output, once there is one.

        Raises:
            JobTimeout: it did not end in `timeout` seconds; it goes on.
            GPTFlowError: the error that the job ended in.
        """
        return self.wait(timeout).unwrap()

    def events(self, after: str | None = None, timeout: float | None = None) -> Iterator[Event]:
        """What happens to the text, as it happens. A connection that breaks is made again.

        Args:
            after: the id of the last entry already seen.
            timeout: seconds to wait for the end.

        Raises:
            JobTimeout: it did not end in time; it goes on.
        """
        check_seconds(timeout)
        return self._transport.events(self.id, after, timeout)

    def stream(
        self, timeout: float | None = None, *, on_reset: Callable[[], None] = lambda: None
    ) -> Iterator[str]:
        """The text piece by piece as it is decoded, of a job submitted with `stream=True`.

        All pieces together are the text that the job ended with, unless `on_reset` was called.

        Args:
            on_reset: called when the text starts again with the next piece.

        Raises:
            JobTimeout: it did not end in `timeout` seconds; it goes on.
            GPTFlowError: the error that the job ended in, after the last piece.
        """
        text = StreamedText(on_reset)
        for event in self.events(timeout=timeout):
            if piece := text.take(event):
                yield piece
        output = self.result(timeout)
        if piece := text.finish(output):
            yield piece

    def cancel(self) -> bool:
        """Stop it, queued or running. False if it had ended."""
        return self._transport.cancel(self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A submitted batch."""

    id: str
    _transport: Transport = dataclasses.field(repr=False, compare=False)

    @property
    def record(self) -> BatchRecord:
        """Counts of items, now."""
        return self._transport.batch(self.id)

    def as_completed(
        self, timeout: float | None = None, *, stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Result]]:
        """Each row's number and result, in the order in which they end.

        Of a batch that is still being given rows, it goes on until that one is sealed.

        Args:
            stop: ends it early, from another thread, within about two seconds.

        Raises:
            JobTimeout: nothing ended for `timeout` seconds.
        """
        check_seconds(timeout)
        return self._transport.batch_results(self.id, timeout, stop)

    def results(self, timeout: float | None = None) -> list[Result]:
        """Every row's result, in the rows' order."""
        return [
            result for _, result in sorted(self.as_completed(timeout), key=lambda pair: pair[0])
        ]

    def cancel(self) -> bool:
        """Stop what has not ended; results that are there stay. False if all had ended."""
        return self._transport.cancel(self.id)
