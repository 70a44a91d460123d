"""A worker's signs of life go on whatever goes wrong, and end with its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptflow import config
from gptflow.plugins import Registry
from gptflow.queue import presence
from gptflow.queue.dispatcher import Dispatcher
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.presence import Presence
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.runtime import Runtime
from gptflow.queue.transport import RedisTransport
from gptflow.testing import ScriptedEngine
from gptflow.transport import WorkerRecord

Eventually = Callable[[Callable[[], bool]], None]


class Engine(ScriptedEngine):
    """An engine whose counters can break."""

    broken = False

    def stats(self) -> dict[str, Any]:
        if self.broken:
            raise ValueError("no counters")
        return dict(super().stats())


class Worker:
    """What of a worker has to do with its signs of life."""

    def __init__(self, url: str) -> None:
        settings = config.load(redis_url=url, app="presence")
        self.engine = Engine()
        self.stopped = threading.Event()
        self.transport = RedisTransport(settings)
        self.store = self.transport.store
        self.ledger = RedisLedger(self.store, lease=0.3, dead_ttl=60)
        self.runtime = Runtime(
            self.engine, Registry(), self.transport, settings=settings, concurrency=1, most=1
        )
        self.dispatcher = Dispatcher(self.runtime, self.ledger, settings=settings, name="w")
        self.presence = Presence(
            self.store,
            self.ledger,
            self.dispatcher,
            self.runtime,
            WorkerRecord(name="w", pid=1, model="m", started=1.0),
            lease=0.3,
            wake=lambda: None,
            on_engine_stopped=self.stopped.set,
        )
        self.presence.start()

    def close(self) -> None:
        self.presence.stop()
        self.dispatcher.close()
        self.runtime.close()
        self.ledger.close()
        self.transport.close()


@pytest.fixture
def own(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(presence, "ANNOUNCE", 0.05)
    monkeypatch.setattr(presence, "REAP", 0.05)
    worker = Worker(server.url)
    yield worker
    worker.close()


def test_an_engine_that_has_stopped_takes_the_workers_record_away(
    own: Worker, eventually: Eventually
) -> None:
    assert [record.name for record in own.transport.workers()] == ["w"]
    assert not own.stopped.is_set()
    own.engine.close()
    assert own.stopped.wait(5)
    eventually(lambda: own.transport.workers() == [])


def test_signs_of_life_go_on_after_one_that_failed(
    own: Worker,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = threading.Event()

    def fail(**_: Any) -> int:
        failed.set()
        raise KeyError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(own.ledger, "reap", fail)
        assert failed.wait(5)
        own.ledger.withdraw("w")
        eventually(lambda: own.transport.workers() != [])
    own.ledger.withdraw("w")
    eventually(lambda: own.transport.workers() != [])
    assert "KeyError" in caplog.text
    assert "a secret" not in caplog.text


def test_counters_that_break_do_not_cost_the_worker_its_record(
    own: Worker, eventually: Eventually
) -> None:
    own.engine.broken = True
    own.ledger.withdraw("w")
    eventually(lambda: own.transport.workers() != [])
