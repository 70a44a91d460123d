"""The writer of streams outlives whatever a write raises."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from gptflow.queue.deltas import DeltaWriter
from gptflow.queue.ledger import Claim, Piece
from gptflow.queue.memory_store import MemoryStore
from gptflow.request import Delta

CLAIM = Claim(job_id="job_1")


class Streams(MemoryStore):
    """A store whose streams take no lone surrogate, as a Redis client does not."""

    def __init__(self) -> None:
        super().__init__(publish=lambda job_id: None, announce=lambda job_id: None)
        self.written: queue.Queue[str] = queue.Queue()
        self.refused = threading.Event()

    def append(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            try:
                piece.event.text.encode()
            except UnicodeEncodeError:
                self.refused.set()
                raise
            self.written.put(piece.event.text)


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def writer(streams: Streams) -> Iterator[DeltaWriter]:
    writer = DeltaWriter(streams)
    yield writer
    writer.close()


def test_text_that_cannot_be_written_is_dropped_and_the_next_is_written(
    writer: DeltaWriter, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        writer.add(CLAIM, Delta("a secret \ud800"))
        assert streams.refused.wait(5)
        writer.add(CLAIM, Delta("next"))
        assert streams.written.get(timeout=5) == "next"
    assert "UnicodeEncodeError" in caplog.text
    assert "a secret" not in caplog.text
