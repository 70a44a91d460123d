"""The writer of streams outlives whatever a write raises."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from gptflow.errors import BrokerUnavailable
from gptflow.queue.deltas import DeltaWriter
from gptflow.queue.following import Follower
from gptflow.queue.ledger import Claim, Piece
from gptflow.queue.memory_store import MemoryStore
from gptflow.request import Delta
from gptflow.transport import Event

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


class Flickering(Streams):
    """A store that is away for a while, and may have taken what it did not confirm."""

    def __init__(self) -> None:
        super().__init__()
        self.away = threading.Event()
        self.asked = threading.Event()
        self.events: list[Event] = []

    def append(self, pieces: Sequence[Piece]) -> None:
        if self.away.is_set():
            self.events += [piece.event for piece in pieces]  # its reply is lost
            self.asked.set()
            raise BrokerUnavailable("It is away.")
        self.events += [piece.event for piece in pieces]
        super().append(pieces)


def test_text_waits_for_redis_to_come_back_and_is_read_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    streams = Flickering()
    writer = DeltaWriter(streams)
    streams.away.set()
    writer.add(CLAIM, Delta("one "))
    assert streams.asked.wait(5)
    writer.add(CLAIM, Delta("two "))
    with pytest.raises(BrokerUnavailable):
        writer.finish(CLAIM)
    streams.away.clear()
    writer.add(CLAIM, Delta("three"))
    writer.finish(CLAIM)
    writer.close()
    follower = Follower(None)
    numbered = [dataclasses.replace(e, id=str(n)) for n, e in enumerate(streams.events, 1)]
    told = [one for event in numbered for one in follower.follow(event)]
    assert "".join(event.text for event in told) == "one two three"
    assert {event.kind for event in told} == {"delta"}
    assert streams.events[-1] == Event(id="", kind="delta", at=len("one two three"))
    assert caplog.text.count("The text waits") == 1
