"""What a caller sees while Redis is away, and after it was."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gptflow import config, open_batch
from gptflow.client import Client
from gptflow.errors import BrokerUnavailable, ConfigError
from gptflow.queue.control import stats
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.health import inspect_server
from gptflow.queue.scripts import Call

LIMIT = 5.0


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def blackhole() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


CALLS: dict[str, Callable[[Client], Any]] = {
    "submit": lambda flow: flow.submit("text.generate", "a secret"),
    "submit_many": lambda flow: flow.submit_many("text.generate", ["a secret"]),
    "wait": lambda flow: flow.job("job_01234567").wait(60),
    "stream": lambda flow: list(flow.job("job_01234567").events(timeout=60)),
    "cancel": lambda flow: flow.cancel("job_01234567"),
    "list": lambda flow: flow.transport.jobs(None, 10),
    "workers": lambda flow: flow.transport.workers(),
    "stats": lambda flow: stats(flow.settings),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["dead_port", "blackhole"])
def test_a_server_that_is_away_is_an_error_within_five_seconds(
    where: str, call: str, request: pytest.FixtureRequest
) -> None:
    port = request.getfixturevalue(where)
    with Client(f"redis://:hunter2@127.0.0.1:{port}/0") as flow:
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            CALLS[call](flow)
    assert time.monotonic() - started < LIMIT
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "a secret" not in str(caught.value)


def test_a_batch_of_which_only_a_part_was_enqueued_is_cancelled(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(settings=config.load(redis_url=server.url, app="half")) as flow:
        scripts = flow.transport.store.scripts
        run_all, enqueued = scripts.run_all, []

        def break_at_the_second_slice(calls: list[Call]) -> Any:
            if calls[0].name == "enqueue":
                if enqueued:
                    raise redis.ConnectionError("gone")
                enqueued.extend(calls)
            return run_all(calls)

        monkeypatch.setattr(scripts, "run_all", break_at_the_second_slice)
        monkeypatch.setattr(open_batch, "_PATIENCE", 0.0)
        with pytest.raises(BrokerUnavailable):
            flow.submit_many("text.generate", ["a secret"] * 5000)
        monkeypatch.undo()
        jobs = flow.transport.jobs(None, 100)
        assert 0 < len(jobs) < 79
        assert {job.state for job in jobs} == {"cancelled"}
        batch = flow.batch(str(jobs[0].batch))
        assert batch.record.cancelled
        assert {result.state for result in batch.results(5)} == {"cancelled"}


def test_a_client_gets_over_a_restart_of_the_server(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data").start()
    try:
        with Client(server.url) as flow:
            job = flow.submit("text.generate", "hi", key="k")
            server.stop()
            with pytest.raises(BrokerUnavailable):
                flow.submit("text.generate", "hi")
            server.start()
            with Client(server.url) as again:
                assert again.job(job.id).state == "queued"
                assert again.submit("text.generate", "hi", key="k").id == job.id
    finally:
        server.stop()


def test_a_worker_gets_over_a_restart_of_the_server(
    tmp_path: Path, start: Callable[..., Any], eventually: Callable[..., None], dead_port: int
) -> None:
    # On a port, so that the restarted server is at the same address.
    server = EmbeddedServer(tmp_path / "data", port=dead_port).start()
    try:
        worker = start("gptflow_workers.cpu", redis_url=server.url)
        with Client(server.url) as flow:
            eventually(lambda: len(flow.transport.workers()) == 1, 60)
            job = flow.submit("bed.sleep", {"value": 1.5})
            eventually(lambda: job.state == "running")
            server.stop()
            server.start()
            assert job.wait(30).ok
            assert flow.run("bed.echo", {"value": 1}, timeout=30) == {"value": 1}
        assert worker.terminate() == 0
    finally:
        server.stop()


def test_the_servers_health_can_be_asked(server: Any) -> None:
    health = inspect_server(config.load(redis_url=server.url))
    assert health.description.startswith(("Valkey", "Redis"))
    assert health.eviction == "noeviction"
    assert not health.append_only, "it has no folder of its own to keep one in"
    assert health.round_trip_ms < 1000
    assert abs(health.time - time.time()) < 5


def test_a_worker_does_not_start_on_a_server_that_may_drop_jobs(
    tmp_path: Path, start: Callable[..., Any], eventually: Callable[..., None], dead_port: int
) -> None:
    with EmbeddedServer(tmp_path / "data", port=dead_port) as server, Client(server.url) as flow:
        store = flow.transport.store
        store.client.config_set("maxmemory-policy", "allkeys-lru")
        refused = start("gptflow_workers.cpu", redis_url=server.url)
        assert refused.popen.wait(60) == ConfigError.exit_code
        assert "maxmemory-policy is allkeys-lru" in refused.output
        assert "config set maxmemory-policy noeviction" in refused.output
        store.client.config_set("maxmemory-policy", "noeviction")
        store.client.config_set("appendonly", "no")
        forgetful = start("gptflow_workers.cpu", redis_url=server.url)
        eventually(lambda: len(flow.transport.workers()) == 1, 60)
        assert "keeps no append-only file" in forgetful.output
        assert forgetful.terminate() == 0
