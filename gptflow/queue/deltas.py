"""DeltaWriter: puts the text of running jobs into their streams, a few times a second.

Writing each piece as it comes would cost a round trip per token. What gathers in between
becomes one entry per job, and all jobs' entries go out together.
"""

from __future__ import annotations

import logging
import threading

from gptflow.errors import BrokerUnavailable
from gptflow.queue.ledger import Claim, Ledger, Piece
from gptflow.request import Delta
from gptflow.transport import Event

logger = logging.getLogger(__name__)

INTERVAL = 0.025
"""Seconds between two writes: below what a reader notices."""


class DeltaWriter:
    """Gathers pieces of text and writes them from a thread of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._gathered: dict[tuple[Claim, int], list[str]] = {}
        self._gathering = threading.Lock()
        self._writing = threading.Lock()
        self._some = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gptflow-deltas", daemon=True)
        self._thread.start()

    def add(self, claim: Claim, delta: Delta) -> None:
        """Take a piece of a job's text; never waits for the network."""
        with self._gathering:
            self._gathered.setdefault((claim, delta.sample), []).append(delta.text)
        self._some.set()

    def restart(self, claim: Claim) -> None:
        """Tell readers to forget the text so far, because the job starts again."""
        self._write([Piece(claim, Event(id="", kind="reset"))])

    def flush(self) -> None:
        """Write what has been gathered; when this returns, it is in the streams."""
        with self._writing:
            with self._gathering:
                gathered, self._gathered = self._gathered, {}
            if gathered:
                self._write(
                    [
                        Piece(claim, Event(id="", kind="delta", text="".join(texts), sample=sample))
                        for (claim, sample), texts in gathered.items()
                    ]
                )

    def close(self) -> None:
        self._stopping.set()
        self._some.set()
        self._thread.join()

    def _write(self, pieces: list[Piece]) -> None:
        try:
            self._ledger.append(pieces)
        # The whole text is in the result; its readers only lose sight of its making. Nothing
        # may end the thread, or the job whose text this is.
        except BrokerUnavailable as error:
            logger.warning("Streams: %s", error.message)
        except Exception as error:  # noqa: BLE001  a store may raise anything
            logger.error("Streams: a piece of text is dropped: %s.", type(error).__name__)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._some.wait()
            self._some.clear()
            self._stopping.wait(INTERVAL)
            self.flush()
