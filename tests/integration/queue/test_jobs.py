"""Jobs through a real Valkey and a real Celery worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.envelope import Envelope, new_id
from gptflow.errors import InvalidInput, JobCancelled, JobNotFound, JobTimeout, TaskNotFound
from gptflow.queue.control import stats

Eventually = Callable[[Callable[[], bool]], None]


def test_a_job_gives_its_output_with_provenance(flow: Client) -> None:
    job = flow.submit("text.generate", "Once upon a time")
    result = job.wait(20)
    assert result.unwrap()["text"] == "A scripted answer."
    assert result.provenance is not None
    assert result.provenance.model["id"] == "scripted"
    assert result.timings["queued"] >= 0
    record = job.record
    assert record.state == "done"
    assert record.submitted <= record.started <= record.finished
    assert record.worker == flow.transport.workers()[0].name


def test_an_error_comes_back_as_its_own_class(flow: Client) -> None:
    with pytest.raises(TaskNotFound, match=r"bed\.ecko"):
        flow.run("bed.ecko", {"value": 1}, timeout=20)
    with pytest.raises(InvalidInput, match="nonsense"):
        flow.run("bed.echo", {"nonsense": 1}, timeout=20)


def test_a_plugin_that_exits_fails_its_job_and_not_the_worker(flow: Client) -> None:
    assert flow.submit("bed.echo", {"value": "exit"}).wait(20).state == "failed"
    assert flow.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}


def test_a_hundred_jobs_are_in_flight_at_once(
    flow: Client, tmp_path: Path, eventually: Eventually
) -> None:
    gate = tmp_path / "gate"
    jobs = [flow.submit("bed.gate", {"value": str(gate)}) for _ in range(100)]
    eventually(lambda: sum(worker.in_flight for worker in flow.transport.workers()) >= 100)
    (pool,) = [node["pool"] for node in stats(flow.settings).values()]
    gate.touch()
    assert pool["in_flight"] >= 100
    assert pool["peak_in_flight"] >= 100
    assert "requests" in pool["engine"]
    assert all(job.wait(20).ok for job in jobs)


def test_the_rows_of_one_batch_message_run_side_by_side(
    flow: Client, tmp_path: Path, eventually: Eventually
) -> None:
    gate = tmp_path / "gate"
    batch = flow.submit_many("bed.gate", [{"value": str(gate)}] * 64)
    eventually(lambda: sum(worker.in_flight for worker in flow.transport.workers()) >= 64)
    assert batch.record.done == 0
    gate.touch()
    assert all(result.ok for result in batch.results(20))


def test_a_thousand_rows_each_end_once_under_their_own_number(flow: Client) -> None:
    rows: list[Any] = [{"value": n} for n in range(1000)]
    rows[500] = {"value": "bad"}
    rows[501] = {"wrong": 1}
    batch = flow.submit_many("bed.echo", rows)
    seen = [number for number, _ in batch.as_completed(20)]
    assert sorted(seen) == list(range(1000))
    results = batch.results(20)
    assert {n for n, result in enumerate(results) if not result.ok} == {500, 501}
    assert [r.output["value"] for n, r in enumerate(results) if r.ok] == [
        n for n in range(1000) if n not in (500, 501)
    ]
    assert (batch.record.done, batch.record.failed) == (998, 2)


def test_a_batchs_results_arrive_while_it_runs(flow: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "open").touch()
    batch = flow.submit_many("bed.gate", [{"value": str(tmp_path / "open")}, {"value": str(gate)}])
    ended = batch.as_completed(20)
    assert next(ended)[0] == 0
    gate.touch()
    assert next(ended)[0] == 1


def test_the_same_key_gives_the_same_job_whoever_asks_at_once(flow: Client) -> None:
    key = new_id()
    ids: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(flow.submit("bed.echo", {"value": 1}, key=key).id)
        )
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16
    assert len(set(ids)) == 1
    assert flow.job(ids[0]).result(20) == {"value": 1}
    assert flow.submit("bed.echo", {"value": 1}, key=key, tenant="other").id != ids[0]


def test_cancelling_a_running_job_aborts_it_at_once(
    flow: Client, notes: Path, eventually: Eventually
) -> None:
    job = flow.submit("bed.sleep", {"value": 3600})
    eventually(lambda: job.state == "running")
    started = time.monotonic()
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(5)
    eventually(lambda: f"cancelled {job.id}" in notes.read_text())
    assert time.monotonic() - started < 2
    assert not job.cancel()


def test_cancelling_a_running_batch_keeps_what_has_ended(
    flow: Client, tmp_path: Path, eventually: Eventually
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "open").touch()
    rows = [{"value": str(tmp_path / "open")}] * 10 + [{"value": str(gate)}] * 190
    batch = flow.submit_many("bed.gate", rows)
    eventually(lambda: batch.record.done == 10)
    assert batch.cancel()
    states = [result.state for result in batch.results(20)]
    assert states == ["done"] * 10 + ["cancelled"] * 190
    assert batch.record.cancelled
    assert not batch.cancel()


def test_a_deadline_that_passes_while_it_runs_aborts_the_job(flow: Client) -> None:
    job = flow.submit("bed.sleep", {"value": 3600}, timeout=0.3)
    with pytest.raises(JobTimeout):
        job.result(20)
    assert job.state == "failed"


def test_a_job_does_not_start_before_its_time(flow: Client) -> None:
    not_before = time.time() + 1
    envelope = Envelope(task="bed.echo", input={"value": 1}, not_before=not_before)
    job = flow.job(flow.transport.submit(envelope))
    assert job.wait(20).ok
    assert (job.record.started or 0) >= not_before


def test_text_streams_in_order_while_the_job_runs(flow: Client) -> None:
    job = flow.submit("bed.words", {"value": 20}, stream=True)
    events = []
    for event in job.events(timeout=20):
        if not events:
            assert job.state == "running"
        events.append(event)
    deltas = [event for event in events if event.kind == "delta"]
    assert len(deltas) >= 3
    assert "".join(event.text for event in deltas) == job.result(5)["value"]
    assert events[-1].kind == "end"
    resumed = list(job.events(after=deltas[1].id, timeout=20))
    assert resumed == events[2:]


def test_the_clients_stream_is_the_text(flow: Client) -> None:
    text = "".join(flow.stream("text.generate", "hi", timeout=20))
    assert text == "A scripted answer."


def test_a_large_input_goes_by_reference_and_is_not_kept(flow: Client) -> None:
    value = "x" * (flow.settings.inline_payload + 1)
    job = flow.submit("bed.echo", {"value": value})
    assert job.result(20) == {"value": value}
    store = flow.transport.store
    assert not store.client.exists(store.keys.input(job.id))
    batch = flow.submit_many("bed.echo", [{"value": value}] * 3)
    assert [result.output for result in batch.results(20)] == [{"value": value}] * 3


def test_a_reference_to_something_else_is_refused(flow: Client) -> None:
    store = flow.transport.store
    store.client.set("somebody-elses", '"a secret"', ex=60)
    envelope = Envelope(task="bed.echo", input_ref="somebody-elses")
    job_id = store.submit(_packed(envelope))
    with pytest.raises(InvalidInput, match="does not exist"):
        flow.job(job_id).result(20)


def _packed(envelope: Envelope) -> Any:
    from gptflow.queue.payload import Packed, dumps

    return Packed(envelope=envelope, wire=dumps(envelope.to_wire()))


@pytest.mark.parametrize("size", [10, 200])
def test_a_job_maps_another_task_through_the_queue(flow: Client, size: int) -> None:
    assert flow.run("bed.spread", {"value": size}, timeout=20) == {"value": sum(range(size))}


def test_jobs_are_listed_newest_first_and_by_state(flow: Client) -> None:
    jobs = [flow.submit("bed.echo", {"value": n}) for n in range(3)]
    for job in jobs:
        job.wait(20)
    listed = flow.transport.jobs(None, 3)
    assert [record.id for record in listed] == [job.id for job in reversed(jobs)]
    assert all(record.state == "done" for record in flow.transport.jobs("done", 5))
    assert flow.transport.jobs("running", 5) == []


def test_what_was_never_submitted_is_not_found(flow: Client) -> None:
    with pytest.raises(JobNotFound):
        flow.job(new_id()).wait(1)
    with pytest.raises(JobNotFound):
        flow.job(new_id()).cancel()
    with pytest.raises(JobNotFound):
        flow.batch(new_id("batch")).results(1)
    with pytest.raises(JobNotFound):
        list(flow.job(new_id()).events(timeout=1))


def test_an_observer_that_raises_does_no_harm(
    flow: Client, notes: Path, eventually: Eventually
) -> None:
    job = flow.submit("bed.echo", {"value": "observed"})
    assert job.wait(20).ok
    eventually(lambda: f"finished {job.id}" in notes.read_text())


def test_every_key_expires_but_the_queues_and_what_is_of_bounded_size(
    own: Client, start_worker: Any
) -> None:
    worker = start_worker(app=own.settings.app)
    own.run("bed.echo", {"value": 1}, timeout=20)
    own.submit_many("bed.echo", [{"value": 1}] * 200).results(20)
    assert worker.terminate() == 0
    store = own.transport.store
    ours = list(store.client.scan_iter(f"{store.keys.prefix}*"))
    kept = {key for key in ours if store.client.ttl(key) == -1}
    celerys = {key for key in kept if "_kombu" in key or "celery" in key or ":gf." in key}
    assert ours
    assert kept - celerys == {store.keys.jobs, store.keys.policy, store.keys.totals}
