"""A batch that is given rows one by one: what it sends, and how it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.envelope import Envelope
from gptflow.errors import BrokerUnavailable, InvalidInput, JobCancelled, QueueFull
from gptflow.number_set import NumberSet
from gptflow.packing import ITEMS_PER_MESSAGE
from gptflow.transport import BatchRecord

FULL = QueueFull("Too many.", retry_after=0.001)
AWAY = BrokerUnavailable("Redis is away.")


class Queue:
    """A transport that keeps messages by key, and refuses as it is told to."""

    def __init__(self) -> None:
        self.messages: dict[str, Envelope] = {}
        self.calls = 0
        self.refusals: list[Exception] = []
        self.record: BatchRecord | None = None
        self.total: int | None = None
        self.cancelled = False
        self.ended = NumberSet()

    def open_batch(self, record: BatchRecord) -> None:
        self.record = record

    def add_to_batch(self, batch_id: str, chunks: Sequence[Envelope]) -> None:
        self.calls += 1
        for chunk in chunks:
            if self.refusals:
                raise self.refusals.pop(0)
            self.messages.setdefault(str(chunk.key), chunk)

    def seal_batch(self, batch_id: str, total: int) -> None:
        self.total = total

    def batch(self, batch_id: str) -> BatchRecord:
        return BatchRecord(id=batch_id, task="a.b", total=len(self.rows), sealed=False)

    def ended_items(self, batch_id: str) -> NumberSet:
        return self.ended

    def cancel(self, batch_id: str) -> bool:
        self.cancelled = True
        return True

    def close(self) -> None:
        pass

    @property
    def rows(self) -> list[Any]:
        return [item.input for chunk in self.messages.values() for item in chunk.items or ()]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr("gptflow.client.connect", lambda settings, **inside: queue)
    monkeypatch.setattr("gptflow.open_batch._PAUSE", 0.001)
    return queue


@pytest.fixture
def client(queue: Queue) -> Client:
    return Client("memory://")


def test_rows_are_taken_as_they_are_sent(client: Client, queue: Queue) -> None:
    most = 0
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal most, taken
        for number in range(10_000):
            taken += 1
            most = max(most, taken - len(queue.rows) if taken % 500 == 0 else 0)
            yield str(number)

    client.submit_many("a.b", rows())
    assert queue.rows == [str(number) for number in range(10_000)]
    assert queue.total == 10_000
    assert most <= 17 * ITEMS_PER_MESSAGE


def test_large_rows_travel_in_smaller_messages(client: Client, queue: Queue) -> None:
    client.submit_many("a.b", ["x" * 20_000] * 10)
    assert [len(chunk.items or ()) for chunk in queue.messages.values()] == [3, 3, 3, 1]


def test_a_full_queue_is_waited_for_and_what_it_has_is_not_sent_twice(
    client: Client, queue: Queue
) -> None:
    queue.refusals = [FULL, FULL, AWAY, FULL]
    client.submit_many("a.b", map(str, range(200)))
    assert queue.rows == list(map(str, range(200)))
    assert queue.calls == 5


def test_who_does_not_want_to_wait_is_told_at_once_while_nothing_is_accepted(
    client: Client, queue: Queue
) -> None:
    queue.refusals = [FULL]
    with pytest.raises(QueueFull):
        client.submit_many("a.b", ["x"], wait=False)
    assert queue.cancelled


def test_but_what_has_begun_waits(client: Client, queue: Queue) -> None:
    with client.open_batch("a.b", wait=False) as batch:
        for number in range(2000):
            if number == 1500:
                assert queue.rows
                queue.refusals = [FULL, FULL]
            batch.add(str(number))
    assert len(queue.rows) == 2000


def test_a_row_that_does_not_fit_leaves_the_batch_as_it_was(client: Client, queue: Queue) -> None:
    with client.open_batch("a.b") as batch:
        assert batch.add("one") == 0
        bad = object(), float("nan"), {"id": "x" * 300, "text": "y"}, "x" * (9 << 20)
        for row in bad:
            with pytest.raises(InvalidInput):
                batch.add(row)
        assert batch.add("two") == 1
    assert (queue.rows, queue.total) == (["one", "two"], 2)


def test_a_bad_row_cancels_what_submit_many_has_sent(client: Client, queue: Queue) -> None:
    def rows() -> Iterator[Any]:
        yield from map(str, range(5000))
        yield object()

    with pytest.raises(InvalidInput, match="Row 5000"):
        client.submit_many("a.b", rows())
    assert queue.rows
    assert queue.cancelled


def test_a_batch_that_is_cancelled_meanwhile_takes_no_more(client: Client, queue: Queue) -> None:
    queue.refusals = [JobCancelled("Batch was cancelled.")]
    with pytest.raises(JobCancelled):
        client.submit_many("a.b", map(str, range(5000)))


def test_one_who_waits_can_be_stopped_from_another_thread(client: Client, queue: Queue) -> None:
    queue.refusals = [QueueFull("Too many.", retry_after=3600)]
    batch = client.open_batch("a.b")
    batch.add("x")
    timer = threading.Timer(0.05, batch.stop)
    timer.start()
    with pytest.raises(JobCancelled):
        batch.seal()
    timer.join()


def test_the_same_rows_again_are_the_same_messages(client: Client, queue: Queue) -> None:
    first = client.open_batch("a.b")
    for number in range(3000):
        first.add(str(number))
    assert 0 < len(queue.rows) < 3000  # and then its process dies
    again = client.open_batch("a.b", batch_id=first.id)
    sent = dict(queue.messages)
    for number in range(3000):
        again.add(str(number))
    again.seal()
    assert queue.rows == list(map(str, range(3000)))
    assert all(queue.messages[key] is chunk for key, chunk in sent.items())


def test_messages_whose_rows_have_all_ended_are_not_sent_again(
    client: Client, queue: Queue
) -> None:
    queue.ended = NumberSet([*range(64), 70])
    batch = client.open_batch("a.b", batch_id="batch_" + "0" * 32)
    for number in range(130):
        batch.add(str(number))
    batch.seal()
    assert queue.rows == list(map(str, range(64, 130)))


@pytest.mark.parametrize("option", [{"tenant": "two words"}, {"job_class": "x"}, {"seed": -1}])
def test_an_option_that_does_not_fit_is_refused_before_the_first_row(
    client: Client, option: Any
) -> None:
    with pytest.raises(InvalidInput):
        client.open_batch("a.b", **option)
