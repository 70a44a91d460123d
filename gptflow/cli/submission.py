"""Submission: the rows of a file on their way to the queue, and their results back.

A thread of its own reads the file and sends it, waiting while the queue is full, and the results
are written as they arrive; nothing is kept in memory that grows with the number of rows.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gptflow.cli.outputs import Outputs
from gptflow.cli.rows import Row, name_of
from gptflow.errors import ErrorInfo, GPTFlowError, InvalidInput, JobCancelled

if TYPE_CHECKING:
    from gptflow.open_batch import OpenBatch
    from gptflow.result import Result


class Submission:
    """One batch from a file to its outputs.

    Args:
        begun: bytes of the output that are of earlier batches: rows that have their lines there
            are not sent.

    Attributes:
        refused: how many rows could not be sent.
        codes: how many of those that were sent ended in each error.
        sample: one of these errors.
    """

    def __init__(
        self, rows: Iterator[Row], batch: OpenBatch, outputs: Outputs, *, begun: int = 0
    ) -> None:
        self._rows = rows
        self._batch = batch
        self._outputs = outputs
        self._begun = begun
        self._ready = threading.Event()  # the batch can be asked for, or will not be
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._send_all, name="gptflow-rows", daemon=True)
        self.refused = 0
        self.codes: Counter[str] = Counter()
        self.sample: ErrorInfo | None = None

    def run(self, timeout: float, update: Callable[[int], None]) -> None:
        """Send the rows and write the results, until every row has one.

        Args:
            timeout: seconds in which at least one row must end.
            update: called with the number of rows that have ended.

        Raises:
            JobTimeout: no row ended for so long; the batch goes on.
            GPTFlowError: the batch could not be sent. What was sent goes on.
        """
        self._thread.start()
        try:
            self._ready.wait()
            if self._batch.count and self._error is None:
                self._collect(timeout, update)
        finally:
            self._stop.set()
            self._batch.stop()
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._cancelled:
            self._end_rest()

    def send(self) -> None:
        """Send the rows and write what is wrong with bad ones; the results stay where they are.

        Raises:
            GPTFlowError: the batch could not be sent; what was is cancelled.
        """
        try:
            self._send_all()
            if self._error is not None:
                raise self._error
        except BaseException:
            with contextlib.suppress(GPTFlowError):
                self._batch.cancel()
            raise

    def _collect(self, timeout: float, update: Callable[[int], None]) -> None:
        index = self._outputs.index
        ended = index.counts()[1]
        for _, result in self._batch.handle.as_completed(timeout, stop=self._stop):
            # Where a run goes on, its ledger tells of rows that are in the output already.
            if result.custom_id is not None and index.line(result.custom_id) is None:
                self._write(result)
                ended += 1
            update(ended)

    def _write(self, result: Result) -> None:
        if result.error is not None:
            self.codes[result.error.code] += 1
            self.sample = result.error
        self._outputs.write(result.as_row())
        self._outputs.print_ready()

    def _end_rest(self) -> None:
        """Write that rows were cancelled that the batch had not been given by then."""
        error = ErrorInfo(JobCancelled.code, f"Batch {self._batch.id} was cancelled.")
        for name in self._outputs.index.missing():
            self.codes[error.code] += 1
            self._outputs.write(error_row(name, error))
        self._outputs.print_ready()

    # In the thread that reads the file.

    def _send_all(self) -> None:
        try:
            for position, row in enumerate(self._rows):
                if self._stop.is_set():
                    return
                self._take(position, row)
            if self._batch.count and not self._cancelled:
                self._send(self._batch.seal)
        except BaseException as error:  # noqa: BLE001  it is raised where the results are awaited
            self._error = error
            self._stop.set()
        finally:
            self._ready.set()

    def _take(self, position: int, row: Row) -> None:
        index = self._outputs.index
        if row.error is not None:
            self._refuse(position, row.line, row.error)
            return
        earlier = index.add_row(position, row.line, row.custom_id)
        if earlier is not None:
            message = f"Line {row.line} repeats the custom_id {row.custom_id!r} of line {earlier}."
            self._refuse(position, row.line, message)
            return
        place = index.line(row.custom_id)
        if (place is not None and place.offset < self._begun) or self._cancelled:
            return
        try:
            self._send(lambda: self._add(row))
        except InvalidInput as error:
            self._write_bad(row.custom_id, row.custom_id, f"Line {row.line}: {error.message}")

    def _add(self, row: Row) -> None:
        self._batch.add({"custom_id": row.custom_id, "input": row.input})
        if not self._ready.is_set():
            self._batch.begin()
            self._ready.set()

    def _send(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except JobCancelled:
            # By somebody else; here, only that no more is sent.
            self._cancelled = not self._stop.is_set()

    def _refuse(self, position: int, line: int, message: str) -> None:
        """Write the line of a row that cannot be sent."""
        name = key = name_of(line)
        if self._outputs.index.add_row(position, line, key) is not None:
            key = f"\0{position}"  # another row has taken that very name
            self._outputs.index.add_row(position, line, key)
        self._write_bad(name, key, message)

    def _write_bad(self, name: str, key: str, message: str) -> None:
        error = ErrorInfo(InvalidInput.code, message)
        self.refused += 1
        if self._outputs.index.line(key) is None:
            self._outputs.write(error_row(name, error), key=key)
        self._outputs.print_ready()


def error_row(custom_id: str, error: ErrorInfo) -> dict[str, Any]:
    """The output line of a row that has no result."""
    return {
        "custom_id": custom_id,
        "output": None,
        "error": error.as_dict(),
        "provenance": None,
    }
