"""A worker's signs of life go on whatever goes wrong, and end with its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptflow import config
from gptflow.plugins import Registry
from gptflow.queue import presence
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.presence import Presence
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
        self.runtime = Runtime(
            self.engine,
            Registry(),
            self.transport,
            self.store,
            settings=settings,
            name="w",
            concurrency=1,
        )
        record = WorkerRecord(name="w", pid=1, model="m", started=1.0)
        self.presence = Presence(self.store, self.runtime, record, self.stopped.set)
        self.presence.start()

    def close(self) -> None:
        self.presence.stop()
        self.runtime.close()
        self.transport.close()


@pytest.fixture
def own(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(presence, "BEAT", 0.05)
    monkeypatch.setattr(presence, "_LISTEN", 0.05)
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

    def fail() -> int:
        failed.set()
        raise KeyError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(own.store, "release_delayed", fail)
        assert failed.wait(5)
        own.store.withdraw("w")
        eventually(lambda: own.transport.workers() != [])
    own.store.withdraw("w")
    eventually(lambda: own.transport.workers() != [])
    assert "KeyError" in caplog.text
    assert "a secret" not in caplog.text


def test_counters_that_break_do_not_cost_the_worker_its_record(
    own: Worker, eventually: Eventually
) -> None:
    own.engine.broken = True
    own.store.withdraw("w")
    eventually(lambda: own.transport.workers() != [])
