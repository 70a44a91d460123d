"""What an operator sees of a real worker, and of the queue behind it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gptflow.client import Client
from gptflow.envelope import Envelope
from gptflow.queue.catalogue import ALL, LEDGER
from gptflow.queue.control import stats
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.overview import read_overview

Eventually = Callable[..., None]
Start = Callable[..., Any]


def url_of(worker: Any) -> str:
    match = re.search(r"Metrics and probes at (http://\S+)", worker.output)
    assert match, worker.output
    return match[1]


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def probe(worker: Any, path: str) -> tuple[int, list[str]]:
    """The status, and what failed."""
    status, body = fetch(url_of(worker) + path)
    report = json.loads(body)
    assert report["ok"] == (status == 200)
    return status, report["failed"]


def scrape(worker: Any) -> dict[tuple[str, ...], float]:
    status, text = fetch(url_of(worker) + "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_workers_metrics_tell_what_it_did_and_nothing_of_what_was_said(
    own: Client, start_worker: Start, eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app, metrics_port="0")
    own.run("bed.echo", {"value": "my-secret"}, timeout=20, tenant="my-tenant", key="my-key")
    own.submit("bed.echo", {"value": "bad"}).wait(20)
    assert len(list(own.submit_many("bed.echo", [{"value": n} for n in range(130)]).results(20)))
    # A row is counted a moment after its result is on record.
    rows = "gptflow_jobs_total", "batch", "done", "testbed"
    eventually(lambda: scrape(worker).get(rows) == 130)
    found = scrape(worker)
    assert found["gptflow_jobs_total", "standard", "done", "testbed"] == 1
    assert found["gptflow_jobs_total", "standard", "failed", "testbed"] == 1
    assert found["gptflow_job_queue_seconds_count", "standard", "testbed"] == 2
    assert found["gptflow_queue_accepted_total", "standard"] == 2
    assert found["gptflow_workers",] == 1
    assert found["gptflow_ledger_up",] == 1
    assert 0 < found["gptflow_ledger_round_trips_total",] < 2 * 5 + 40
    names = {name for name, *_ in found}
    assert {m.name for m in LEDGER if not m.labels} <= names
    text = fetch(url_of(worker) + "/metrics")[1]
    assert not re.search("my-secret|my-tenant|my-key|job_0", text)
    assert all(
        name.startswith("process_") or re.sub("_(bucket|sum|count)$", "", name) in {*ALL}
        for name in names
    )
    told = stats(own.settings)
    [pool] = [answer["pool"] for answer in told.values()]
    assert pool["jobs"] == {"done": 131, "failed": 1}
    assert (pool["leases"], pool["messages"]) == (0, 0)
    assert pool["room"] > 0
    assert pool["round_trips_per_job"] < 2
    assert worker.terminate() == 0


def test_a_worker_that_drains_lives_and_is_not_ready(
    own: Client, start_worker: Start, tmp_path: Path, eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app, metrics_port="0")
    eventually(lambda: probe(worker, "/readyz") == (200, []))
    gate = tmp_path / "gate"
    job = own.submit("bed.gate", {"value": str(gate)})
    eventually(lambda: job.state == "running")
    eventually(lambda: scrape(worker)["gptflow_leases_held",] == 1)
    worker.popen.terminate()
    eventually(lambda: probe(worker, "/readyz") == (503, ["draining"]), 2)
    assert probe(worker, "/livez") == (200, [])
    gate.touch()
    assert worker.popen.wait(30) == 0
    assert job.wait(1).ok


def test_a_worker_without_its_server_lives_and_is_not_ready(
    start: Start, tmp_path: Path, eventually: Eventually
) -> None:
    with EmbeddedServer(tmp_path / "redis") as server, Client(server.url) as client:
        pid = client.transport.store.client.info("server")["process_id"]
        worker = start("gptflow_workers.cpu", redis_url=server.url, metrics_port="0")
        eventually(lambda: "Ready" in worker.output, 60)
        eventually(lambda: probe(worker, "/readyz") == (200, []))
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert probe(worker, "/livez") == (200, [])
            assert time.monotonic() - started < 1
            eventually(lambda: probe(worker, "/readyz") == (503, ["ledger"]), 30)
            assert scrape(worker)["gptflow_ledger_up",] == 0
            assert probe(worker, "/livez") == (200, [])
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: probe(worker, "/readyz") == (200, []))
        assert worker.terminate() == 0


def test_a_port_that_is_taken_keeps_a_worker_from_starting(
    own: Client, start: Start, start_worker: Start
) -> None:
    first = start_worker(app=own.settings.app, metrics_port="0")
    port = url_of(first).rpartition(":")[2]
    second = start("gptflow_workers.cpu", app=own.settings.app, metrics_port=port)
    assert second.popen.wait(60) == 10
    assert f"cannot be served on http://127.0.0.1:{port}" in second.output
    assert first.terminate() == 0


def test_what_waits_is_counted_and_what_may_not_run_yet_is_not_late(own: Client) -> None:
    store = own.transport.store
    for _ in range(3):
        own.submit("bed.echo", {"value": 1}, job_class="interactive")
    own.submit_many("bed.echo", [{"value": 1}] * 100)
    later = Envelope(task="bed.echo", input={"value": 1}, not_before=time.time() + 3600)
    own.transport.submit(later)
    keys = store.keys
    store.client.zincrby(keys.waiting("interactive"), -60, own.transport.jobs(None, 5)[-1].id)
    seen = read_overview(store)
    assert dict(seen.depth) == {"interactive": 3, "standard": 1, "batch": 100}
    assert seen.waiting == 104
    assert seen.delayed == 1
    assert seen.oldest["standard"] == 0
    assert 0 <= seen.oldest["batch"] < 30
    assert seen.backlog == pytest.approx(104 / 0.1)
    assert seen.workers == ()


def test_a_late_job_is_told_by_its_age(own: Client, eventually: Eventually) -> None:
    job = own.submit("bed.echo", {"value": 1})
    store = own.transport.store
    store.client.zincrby(store.keys.waiting("standard"), -60, job.id)
    assert 60 <= read_overview(store).oldest["standard"] < 90


def gptflow(own: Client, *args: str) -> subprocess.CompletedProcess[str]:
    url = own.settings.broker_url
    assert url is not None
    environment = os.environ | {"GPTFLOW_REDIS_URL": url, "GPTFLOW_APP": own.settings.app}
    return subprocess.run(
        [sys.executable, "-m", "gptflow", *args],
        env=environment | {"GPTFLOW_MODEL": "scripted"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_queue_show_tells_what_waits_and_who_works(own: Client, start_worker: Start) -> None:
    own.submit("bed.echo", {"value": 1}, job_class="batch")
    alone = gptflow(own, "queue", "show")
    assert alone.returncode == 0
    assert "No worker is running" in alone.stderr
    worker = start_worker(app=own.settings.app)
    own.run("bed.echo", {"value": 1}, timeout=20)
    done = gptflow(own, "queue", "show", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["depth"] == {"interactive": 0, "standard": 0, "batch": 0}
    assert seen["totals"]["ended:done"] == 2
    assert seen["dead"] == 0
    [record] = seen["workers"]
    assert (record["pid"], record["model"]) == (worker.popen.pid, "scripted")
    assert "testbed" in record["plugins"]
    table = gptflow(own, "queue", "show").stdout
    assert "interactive" in table
    assert record["name"] in table
    assert worker.terminate() == 0


def test_queue_show_needs_a_queue(own: Client) -> None:
    done = gptflow(own, "--redis", "memory://", "queue", "show")
    assert done.returncode == 10
    assert "memory://" in done.stderr
    silent = gptflow(own, "--redis", "redis://127.0.0.1:1/0", "queue", "show")
    assert silent.returncode == 5


def test_doctor_tells_of_dead_jobs(own: Client) -> None:
    store = own.transport.store
    store.client.zadd(store.keys.dead, {"job_x": time.time()})
    checks = {
        check["check"]: check for check in json.loads(gptflow(own, "doctor", "--json").stdout)
    }
    assert checks["dead jobs"]["status"] == "warning"
    assert "0 items wait" in checks["queue"]["detail"]
    assert checks["workers"]["status"] == "warning"


def test_an_overview_is_json(own: Client) -> None:
    seen = read_overview(own.transport.store)
    assert json.loads(json.dumps(seen.as_dict()))["waiting"] == 0
    assert dataclasses.asdict(seen)["totals"] == {}
