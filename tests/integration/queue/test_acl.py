"""What callers, workers and operators may do on a server that `compose.yaml` would start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from celery import chain, group

from gptflow import config
from gptflow.celery import job
from gptflow.client import Client
from gptflow.errors import BrokerUnavailable
from gptflow.queue.acl import ROLES
from gptflow.queue.app import make_app
from gptflow.queue.control import stats
from gptflow.queue.embedded import find_server
from gptflow.queue.health import inspect_server
from gptflow.queue.overview import read_overview
from gptflow.queue.schedule_ledger import ScheduleLedger

COMPOSE = Path(__file__).parents[3] / "compose.yaml"

Url = Callable[[str], str]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Url]:
    """The URL of each role, on a server with the rules and settings of `compose.yaml`."""
    folder = tmp_path_factory.mktemp("compose")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["valkey"]
    script = service["command"][-1].replace("$$", "$").replace("/tmp/", f"{folder}/")
    script = script.replace("dir /data", f"dir {folder}\nport {port}\nbind 127.0.0.1")
    script = script.replace("exec valkey-server", f"exec {find_server()}")
    passwords = {f"{role.upper()}_PASSWORD": f"password-of-{role}" for role in ROLES}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env={"PATH": os.environ["PATH"], **passwords},
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def url_of(role: str) -> str:
        return f"redis://{role}:password-of-{role}@127.0.0.1:{port}/0"

    with redis.Redis.from_url(url_of("operator")) as client:
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                said = (folder / "log").read_text()
                if process.poll() is not None and "Unknown command or category" in said:
                    pytest.skip("the server is older than Redis 7.2")
                assert process.poll() is None, said
                time.sleep(0.02)
    yield url_of
    process.terminate()
    process.wait(20)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def worker(url: Url, start: Callable[..., Any]) -> Iterator[Any]:
    running = start("gptflow_workers.cpu", redis_url=url("worker"), allow_chains="1")
    with Client(url("operator")) as client:
        until = time.monotonic() + 60
        while not client.transport.workers():
            assert running.popen.poll() is None, running.output
            assert time.monotonic() < until
            time.sleep(0.02)
    yield running
    assert running.terminate() == 0
    assert "permission" not in running.output.lower()


@pytest.fixture
def caller(url: Url, worker: Any) -> Iterator[Client]:
    with Client(settings=config.load(redis_url=url("caller"), allow_chains=True)) as client:
        yield client


@pytest.fixture
def denied(url: Url, worker: Any) -> Iterator[Callable[[], list[str]]]:
    """What the server has denied anybody since the test began."""
    with redis.Redis.from_url(url("operator"), decode_responses=True) as client:
        before = {entry["entry-id"]: entry["count"] for entry in client.acl_log()}

        def since() -> list[str]:
            return [
                f"{entry['username']}: {entry['object']}"
                for entry in client.acl_log()
                if before.get(entry["entry-id"]) != entry["count"]
            ]

        yield since


def test_a_caller_can_send_wait_stream_list_and_cancel(
    caller: Client, denied: Callable[[], list[str]]
) -> None:
    assert caller.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}
    large = caller.submit("bed.echo", {"value": "x" * 100_000}, key="k", job_class="interactive")
    assert large.wait(20).ok
    assert "".join(caller.stream("bed.words", {"value": 2}, timeout=20))
    assert len(caller.submit_many("bed.echo", [{"value": 1}] * 200).results(20)) == 200
    assert caller.submit_many("bed.sleep", [{"value": 100}] * 100).cancel()
    waiting = caller.submit("bed.sleep", {"value": 100})
    assert waiting.cancel()
    assert caller.transport.jobs(None, 5)
    assert caller.transport.workers()
    assert read_overview(caller.transport.store).workers
    assert inspect_server(caller.settings).append_only
    with make_app(caller.settings) as app:
        echo = job("bed.echo", {"value": 1}, of=app)
        assert len(group(echo, echo).delay().get(timeout=20)) == 2
        steps = chain(job("bed.sleep", {"value": 0.5}, of=app), job("bed.echo", of=app))
        later = steps.delay()
        later.revoke()
        assert later.state == "REVOKED"
    assert denied() == []


FORBIDDEN: dict[str, tuple[Any, ...]] = {
    "flush": ("FLUSHALL",),
    "flush one": ("FLUSHDB",),
    "configure": ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
    "read the configuration": ("CONFIG", "GET", "*"),
    "list keys": ("KEYS", "*"),
    "scan keys": ("SCAN", "0"),
    "read another application": ("HGETALL", "gf:{other}:job:job_01234567"),
    "read a field of another": ("HGET", "gf:{other}:job:job_01234567", "result"),
    "write to another": ("HSET", "gf:{other}:job:job_01234567", "state", "done"),
    "push a raw message": ("LPUSH", "gf:{gptflow}:gf.standard", "{}"),
    "take a message": ("BRPOP", "gf:{gptflow}:gf.standard", "1"),
    "read the messages": ("LRANGE", "gf:{gptflow}:gf.standard", "0", "-1"),
    "read a worker's log": ("LRANGE", "gf:{gptflow}:log:x", "0", "-1"),
    "take a lease": ("ZADD", "gf:{gptflow}:lease", "99999999999", "job_01234567"),
    "drop all leases": ("DEL", "gf:{gptflow}:lease"),
    "hand out a job": ("ZADD", "gf:{gptflow}:fed", "1", "job_01234567"),
    "make one run alone": ("ZADD", "gf:{gptflow}:suspects", "1", "job_01234567"),
    "bury a job": ("ZADD", "gf:{gptflow}:dead", "1", "job_01234567"),
    "write to a schedule": ("HSET", "gf:{gptflow}:schedule:tick", "mark", "1"),
    "a script on a key of workers": ("EVALSHA", "0" * 40, "1", "gf:{gptflow}:lease"),
    "change the limits": ("HSET", "gf:{gptflow}:policy", "limit:standard", "0"),
    "delete a record": ("DEL", "gf:{gptflow}:job:job_01234567"),
    "delete the queue": ("DEL", "gf:{gptflow}:gf.standard"),
    "pose as a worker": ("SET", "gf:{gptflow}:worker:x", "{}"),
    "command workers": ("PUBLISH", "gf:{gptflow}:/0.celery.pidbox", "{}"),
    "listen": ("SUBSCRIBE", "gf:{gptflow}:cancels"),
    "any script": ("EVAL", "return redis.call('KEYS', '*')", "0"),
    "users": ("ACL", "LIST"),
    "monitor": ("MONITOR",),
    "shut down": ("SHUTDOWN",),
    "replicate": ("REPLICAOF", "localhost", "1"),
    "load a module": ("MODULE", "LOAD", "/tmp/x.so"),
    "functions": ("FUNCTION", "LOAD", "x"),
    "debug": ("DEBUG", "SLEEP", "0"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_caller_can_do_nothing_else(url: Url, worker: Any, what: str) -> None:
    with (
        redis.Redis.from_url(url("caller")) as client,
        pytest.raises(redis.ResponseError, match=r"permission|not allowed"),
    ):
        client.execute_command(*FORBIDDEN[what])


def test_a_script_gives_a_caller_no_more_rights(url: Url, worker: Any) -> None:
    with redis.Redis.from_url(url("caller")) as client:
        for line in ("'LPUSH', 'gf:{gptflow}:gf.standard', 'x'", "'KEYS', '*'", "'GET', 'x'"):
            digest = client.script_load(f"return redis.call({line})")
            with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
                client.evalsha(digest, 0)


def test_nobody_comes_in_without_a_password(url: Url, worker: Any) -> None:
    host = url("caller").rpartition("@")[2]
    for wrong in (f"redis://{host}", f"redis://caller:x@{host}", f"redis://default:x@{host}"):
        with Client(wrong) as client, pytest.raises(BrokerUnavailable):
            client.transport.jobs(None, 1)


def test_a_worker_reaches_no_other_application(url: Url, worker: Any) -> None:
    with redis.Redis.from_url(url("worker")) as client:
        for command in (
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("GET", "gf:{other}:x"),
            ("KEYS", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_a_scheduler_works_with_the_rights_of_a_worker(
    url: Url,
    worker: Any,
    start: Callable[..., Any],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    denied: Callable[[], list[str]],
) -> None:
    monkeypatch.setenv("TESTBED_SCHEDULES", '{"often": {"every": 1}}')
    beat = start("gptflow_workers.beat", redis_url=url("worker"))
    with Client(url("operator")) as client:
        ledger = ScheduleLedger(client.transport.store)

        def fired() -> bool:
            assert beat.popen.poll() is None, beat.output
            return ledger.states(["testbed.often"])["testbed.often"].fired > 0

        eventually(fired, 60)
        assert client.job(str(ledger.states(["testbed.often"])["testbed.often"].job)).wait(20).ok
    beat.terminate()
    assert denied() == []


def test_an_operator_can_look_and_tidy(
    url: Url, worker: Any, caller: Client, denied: Callable[[], list[str]]
) -> None:
    settings = config.load(redis_url=url("operator"))
    failed = caller.submit("bed.echo", {"value": "bad"})
    assert failed.wait(20).state == "failed"
    with Client(settings=settings) as client:
        store = client.transport.store
        assert client.transport.jobs("failed", 5)
        assert store.dead(5) == []
        assert store.revive(failed.id)
        assert failed.wait(20).state == "failed"
        assert store.last_words(failed.id) == ""
        assert store.purge([failed.id]) == 0
        assert client.submit("bed.sleep", {"value": 100}).cancel()
        assert read_overview(store).workers
        schedules = ScheduleLedger(store)
        assert schedules.pause("a-schedule", True)
        assert schedules.pause("a-schedule", False)
    assert inspect_server(settings).eviction == "noeviction"
    assert len(stats(settings)) == 1
    assert denied() == []
    with redis.Redis.from_url(url("operator")) as raw:
        for command in (("FLUSHALL",), ("CONFIG", "SET", "appendonly", "no"), ("ACL", "LIST")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                raw.execute_command(*command)


def test_a_refused_command_says_where_rights_are_described(url: Url, worker: Any) -> None:
    with Client(url("caller")) as client, pytest.raises(BrokerUnavailable) as caught:
        client.transport.store.purge(["job_01234567"])
    assert "docs/security.md" in str(caught.value)
    assert "password-of-caller" not in str(caught.value)
