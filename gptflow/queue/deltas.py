"""DeltaWriter: puts the text of running jobs into their streams, a few times a second.

Writing each piece as it comes would cost a round trip per token. What gathers in between
becomes one entry per job, and all jobs' entries go out together. While Redis does not answer,
the text waits; a piece that may have arrived is written again, and readers drop what they have
(see `gptflow.queue.following`).
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

_PAUSE = 0.5
"""Seconds between two attempts while Redis does not answer."""


class DeltaWriter:
    """Gathers pieces of text and writes them from a thread of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._gathered: dict[tuple[Claim, int], str] = {}
        self._gathering = threading.Lock()
        self._lengths: dict[Claim, dict[int, int]] = {}  # of what was written, by sample
        self._writing = threading.Lock()  # guards the lengths
        self._some = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gptflow-deltas", daemon=True)
        self._thread.start()

    def add(self, claim: Claim, delta: Delta) -> None:
        """Take a piece of a job's text; never waits for the network."""
        key = (claim, delta.sample)
        with self._gathering:
            self._gathered[key] = self._gathered.get(key, "") + delta.text
        self._some.set()

    def restart(self, claim: Claim) -> None:
        """Tell readers to forget the text so far, because the job starts again.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        self._ledger.append([Piece(claim, Event(id="", kind="reset"))])

    def finish(self, claim: Claim) -> None:
        """Write the rest of a job's text and how long it is; no more will come.

        Raises:
            BrokerUnavailable: Redis does not answer; calling again tries again.
        """
        self._flush(claim)
        with self._writing:
            self._lengths.pop(claim, None)

    def close(self) -> None:
        self._stopping.set()
        self._some.set()
        self._thread.join()

    def _flush(self, last: Claim | None = None) -> None:
        """Write what has gathered, and the length of the text of a job that ends with it."""
        with self._writing:
            with self._gathering:
                gathered, self._gathered = self._gathered, {}
            pieces = []
            for (claim, sample), text in gathered.items():
                length = self._lengths.setdefault(claim, {}).setdefault(sample, 0)
                pieces.append(_piece(claim, sample, length, text))
                self._lengths[claim][sample] += len(text)
            if last is not None:
                lengths = self._lengths.get(last, {})
                pieces += [_piece(last, sample, length, "") for sample, length in lengths.items()]
            try:
                if pieces:
                    self._ledger.append(pieces)
            except BrokerUnavailable:
                self._put_back(gathered)
                raise
            # The whole text is in the result; its readers only lose sight of its making. Nothing
            # may end the thread, or the job whose text this is.
            except Exception as error:  # noqa: BLE001  a store may raise anything
                logger.error("Streams: a piece of text is dropped: %s.", type(error).__name__)

    def _put_back(self, gathered: dict[tuple[Claim, int], str]) -> None:
        with self._gathering:
            for (claim, sample), text in gathered.items():
                self._lengths[claim][sample] -= len(text)
                later = self._gathered.get((claim, sample), "")
                self._gathered[claim, sample] = text + later

    def _run(self) -> None:
        silent = False
        while not self._stopping.is_set():
            self._some.wait()
            self._some.clear()
            self._stopping.wait(_PAUSE if silent else INTERVAL)
            try:
                self._flush()
                silent = False
            except BrokerUnavailable as error:
                if not silent:
                    logger.warning("Streams: %s The text waits.", error.message)
                silent = True
                self._some.set()


def _piece(claim: Claim, sample: int, at: int, text: str) -> Piece:
    return Piece(claim, Event(id="", kind="delta", text=text, sample=sample, at=at))
