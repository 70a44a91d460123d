"""What the store of a process keeps, and what it forgets."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import InvalidInput, JobNotFound
from gptflow.queue import memory_store, records
from gptflow.queue.ledger import Claim, Piece
from gptflow.queue.memory_store import MemoryStore
from gptflow.queue.payload import Packed, pack
from gptflow.queue.records import Ending
from gptflow.result import Result
from gptflow.transport import BatchRecord, Event


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store of three jobs at most."""
    monkeypatch.setattr(memory_store, "LISTED", 3)
    return MemoryStore(publish=lambda job_id: None, announce=lambda job_id: None)


def packed(store: MemoryStore, envelope: Envelope) -> Packed:
    return pack(envelope, reference=store.input_key(envelope.id), inline=0, limit=1000)


def submit(store: MemoryStore, key: str | None = None) -> str:
    return store.submit(packed(store, Envelope(task="a.b", input="x", key=key)))


def run(store: MemoryStore, job_id: str) -> None:
    claim = store.claim(job_id, "worker", 1)
    assert isinstance(claim, Claim)
    store.append([Piece(claim, Event(id="", kind="delta", text="y"))])
    assert store.finish(claim, Ending.of(Result(id=job_id, task="a.b", state="done", output={})))


def submit_batch(store: MemoryStore, messages: int) -> tuple[str, list[str]]:
    record = BatchRecord(id=new_id("batch"), task="a.b", total=messages, submitted=time.time())
    chunks = [
        Envelope(task="a.b", items=(Item(index=n, custom_id="", input="x"),), batch=record.id)
        for n in range(messages)
    ]
    store.open_batch(record)
    store.enqueue_batch(record.id, [packed(store, chunk) for chunk in chunks])
    store.seal_batch(record.id)
    return record.id, [chunk.id for chunk in chunks]


def end_items(store: MemoryStore, batch_id: str, numbers: Sequence[int]) -> None:
    store.end_items(batch_id, {n: records.cancelled(f"{batch_id}/{n}", "a.b") for n in numbers})


def test_a_forgotten_job_takes_its_input_its_events_and_its_key_with_it(
    store: MemoryStore,
) -> None:
    old = submit(store, key="k")
    run(store, old)
    assert submit(store, key="k") == old
    newer = [submit(store) for _ in range(3)]
    with pytest.raises(JobNotFound):
        store.job(old)
    with pytest.raises(InvalidInput):
        store.load_aside(old, 100)
    assert store.read_events(old, "0", 0) == []
    assert [record.id for record in store.jobs(None, 9)] == newer[::-1]
    assert submit(store, key="k") != old


def test_text_that_comes_after_its_job_was_forgotten_is_dropped(store: MemoryStore) -> None:
    old = submit(store)
    run(store, old)
    for _ in range(3):
        submit(store)
    store.append([Piece(Claim(job_id=old), Event(id="", kind="delta", text="late"))])
    assert store.read_events(old, "0", 0) == []


def test_a_batch_is_forgotten_with_the_last_of_its_jobs(store: MemoryStore) -> None:
    batch_id, members = submit_batch(store, 2)
    for job_id in members:
        run(store, job_id)
    end_items(store, batch_id, [0])
    submit(store)
    submit(store)
    assert store.members(batch_id) == {members[1]}
    assert store.ended_items(batch_id) == {0}
    submit(store)
    for ask in (store.batch, store.members, store.ended_items):
        with pytest.raises(JobNotFound):
            ask(batch_id)
    end_items(store, batch_id, [1])  # a worker that comes late does no harm


def test_a_job_that_has_not_ended_is_never_forgotten(store: MemoryStore) -> None:
    waiting = [submit(store) for _ in range(5)]
    assert {record.id for record in store.jobs(None, 9)} == set(waiting)
    assert store.load_aside(waiting[0], 100) == '"x"'
