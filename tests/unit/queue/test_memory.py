"""A worker inside the process keeps the rules of a real one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import InvalidInput, InvalidOutput, JobFailed, JobNotFound, JobTimeout
from gptflow.queue.memory import MemoryTransport
from gptflow.testing import ScriptedEngine
from gptflow.transport import BatchRecord


def submit(transport: MemoryTransport, task: str, value: Any, **more: Any) -> str:
    return transport.submit(Envelope(task=task, input={"value": value}, **more))


def submit_batch(transport: MemoryTransport, task: str, values: list[Any], per: int = 4) -> str:
    record = BatchRecord(id=new_id("batch"), task=task, total=len(values), submitted=time.time())
    items = [
        Item(index=n, custom_id=str(n), input={"value": value}) for n, value in enumerate(values)
    ]
    chunks = [
        Envelope(task=task, items=tuple(items[at : at + per]), batch=record.id)
        for at in range(0, len(items), per)
    ]
    transport.submit_batch(record, chunks)
    return record.id


def test_a_job_ends_with_its_output_and_its_timings(transport: MemoryTransport) -> None:
    job_id = submit(transport, "bed.echo", 7)
    result = transport.result(job_id, 5)
    assert result.unwrap() == {"value": 7}
    assert set(result.timings) == {"queued", "running"}
    record = transport.job(job_id)
    assert record.state == "done"
    assert record.submitted <= record.started <= record.finished


def test_a_plugins_exception_fails_the_job_and_quotes_nothing(transport: MemoryTransport) -> None:
    result = transport.result(submit(transport, "bed.echo", "bad"), 5)
    assert result.state == "failed"
    assert result.error is not None
    assert result.error.code == JobFailed.code
    assert "a secret" not in result.error.message


def test_a_plugin_that_exits_fails_its_job_only(transport: MemoryTransport) -> None:
    assert transport.result(submit(transport, "bed.echo", "exit"), 5).state == "failed"
    assert transport.result(submit(transport, "bed.echo", 1), 5).ok


def test_a_result_that_is_not_json_fails_the_job(transport: MemoryTransport) -> None:
    result = transport.result(submit(transport, "bed.echo", "odd"), 5)
    assert result.error is not None
    assert result.error.code == InvalidOutput.code


def test_the_same_key_gives_the_same_job_for_one_tenant_and_task_only(
    transport: MemoryTransport,
) -> None:
    first = submit(transport, "bed.echo", 1, key="k")
    assert submit(transport, "bed.echo", 2, key="k") == first
    assert submit(transport, "bed.echo", 2, key="k", tenant="other") != first
    assert submit(transport, "bed.words", 2, key="k") != first
    assert transport.result(first, 5).unwrap() == {"value": 1}


def test_waiting_for_too_long_is_a_timeout_and_the_job_goes_on(
    transport: MemoryTransport, bed: Any
) -> None:
    job_id = submit(transport, "bed.hang", 0)
    assert bed.hang.begun.wait(5)
    with pytest.raises(JobTimeout):
        transport.result(job_id, 0.05)
    assert transport.job(job_id).state == "running"


def test_cancelling_a_running_job_stops_it(transport: MemoryTransport, bed: Any) -> None:
    job_id = submit(transport, "bed.hang", 0)
    assert bed.hang.begun.wait(5)
    assert transport.cancel(job_id)
    assert bed.hang.cancelled.wait(5)
    assert transport.result(job_id, 1).state == "cancelled"
    assert not transport.cancel(job_id)


def test_cancelling_a_queued_job_keeps_it_from_running(
    make_transport: Callable[..., MemoryTransport], bed: Any
) -> None:
    transport = make_transport(concurrency=1)
    blocker = submit(transport, "bed.hang", 0)
    assert bed.hang.begun.wait(5)
    waiting = submit(transport, "bed.echo", 1)
    assert transport.job(waiting).state == "queued"
    assert transport.cancel(waiting)
    transport.cancel(blocker)
    assert transport.result(submit(transport, "bed.echo", 2), 5).ok
    assert transport.result(waiting, 1).state == "cancelled"
    assert waiting not in bed.finished


def test_a_deadline_that_passed_in_the_queue_expires_the_job(
    transport: MemoryTransport, bed: Any
) -> None:
    result = transport.result(submit(transport, "bed.echo", 1, deadline=time.time() - 1), 5)
    assert result.state == "expired"
    assert result.error is not None
    assert result.error.code == JobTimeout.code
    assert not bed.finished


def test_a_deadline_that_passes_while_it_runs_aborts_the_job(
    transport: MemoryTransport, bed: Any
) -> None:
    result = transport.result(submit(transport, "bed.hang", 1, deadline=time.time() + 0.3), 5)
    assert result.error is not None
    assert result.error.code == JobTimeout.code
    assert bed.hang.cancelled.wait(5)


def test_a_job_does_not_start_before_its_time(transport: MemoryTransport) -> None:
    not_before = time.time() + 0.3
    job_id = submit(transport, "bed.echo", 1, not_before=not_before)
    assert transport.result(job_id, 5).ok
    assert (transport.job(job_id).started or 0) >= not_before


def test_the_text_streams_in_order_and_can_be_resumed(transport: MemoryTransport) -> None:
    job_id = submit(transport, "bed.words", 0, stream=True)
    events = list(transport.events(job_id, None, 5))
    text = "".join(event.text for event in events)
    assert text == transport.result(job_id, 1).unwrap()["value"]
    assert events[-1].kind == "end"
    again = list(transport.events(job_id, events[0].id, 5))
    assert again == events[1:]
    assert [event.kind for event in transport.events(job_id, events[-1].id, 5)] == ["end"]


def test_a_job_that_is_not_streamed_has_an_end_only(transport: MemoryTransport) -> None:
    job_id = submit(transport, "bed.words", 0)
    assert [event.kind for event in transport.events(job_id, None, 5)] == ["end"]


def test_a_streams_place_that_is_none_is_refused(transport: MemoryTransport) -> None:
    job_id = submit(transport, "bed.echo", 0)
    with pytest.raises(InvalidInput):
        list(transport.events(job_id, "nonsense", 5))


def test_each_row_of_a_batch_ends_once_and_a_bad_one_fails_alone(
    transport: MemoryTransport,
) -> None:
    batch_id = submit_batch(transport, "bed.echo", [0, 1, "bad", 3, "odd", 5, 6, "exit", 8, 9])
    ended = dict(transport.batch_results(batch_id, 5))
    assert sorted(ended) == list(range(10))
    assert {n for n, result in ended.items() if not result.ok} == {2, 4, 7}
    assert ended[9].unwrap() == {"value": 9}
    record = transport.batch(batch_id)
    assert (record.done, record.failed, record.finished) == (7, 3, True)
    assert dict(transport.batch_results(batch_id, 5)) == ended


def test_cancelling_a_batch_keeps_what_has_ended(
    make_transport: Callable[..., MemoryTransport], bed: Any
) -> None:
    transport = make_transport(concurrency=1)
    done = submit_batch(transport, "bed.echo", [1, 2])
    assert all(result.ok for _, result in transport.batch_results(done, 5))
    assert not transport.cancel(done)
    batch_id = submit_batch(transport, "bed.hang", [0] * 10)
    assert bed.hang.begun.wait(5)
    assert transport.cancel(batch_id)
    assert bed.hang.cancelled.wait(5)
    states = [result.state for _, result in transport.batch_results(batch_id, 5)]
    assert states == ["cancelled"] * 10
    assert transport.batch(batch_id).cancelled


def test_a_batch_whose_message_is_cancelled_still_ends(
    make_transport: Callable[..., MemoryTransport], bed: Any
) -> None:
    transport = make_transport(concurrency=1, inline_payload=0)
    blocker = submit(transport, "bed.hang", 0)
    assert bed.hang.begun.wait(5)
    batch_id = submit_batch(transport, "bed.echo", [1, 2, 3, 4, 5, 6])
    chunk = next(job for job in transport.jobs("queued", 10) if job.items == 4)
    assert transport.cancel(chunk.id)
    transport.cancel(blocker)
    states = [result.state for _, result in sorted(transport.batch_results(batch_id, 5))]
    assert states == ["cancelled"] * 4 + ["done"] * 2


def test_silence_on_a_batch_is_a_timeout(transport: MemoryTransport) -> None:
    batch_id = submit_batch(transport, "bed.hang", [0])
    with pytest.raises(JobTimeout, match="0 of 1"):
        list(transport.batch_results(batch_id, 0.05))


@pytest.mark.parametrize("size", [3, 200])
def test_a_job_maps_another_task_over_many_inputs(transport: MemoryTransport, size: int) -> None:
    result = transport.result(submit(transport, "bed.spread", size), 10)
    assert result.unwrap() == {"value": sum(range(size))}


def test_jobs_that_map_cannot_wait_for_one_another(
    make_transport: Callable[..., MemoryTransport],
) -> None:
    transport = make_transport(concurrency=2)
    ids = [submit(transport, "bed.spread", 70) for _ in range(6)]
    assert all(transport.result(job_id, 20).ok for job_id in ids)


def test_observers_see_each_end_and_one_that_raises_does_no_harm(
    transport: MemoryTransport, bed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        good = submit(transport, "bed.echo", 1)
        bad = submit(transport, "bed.echo", "bad")
        assert transport.result(good, 5).ok
        assert not transport.result(bad, 5).ok
        batch_id = submit_batch(transport, "bed.echo", [1, "bad"])
        list(transport.batch_results(batch_id, 5))
        transport.close()
    assert bed.finished == [good, f"{batch_id}/0"]
    assert [code for _, code in bed.failed] == ["GF502", "GF502"]
    assert "on_job_finished raised" in caplog.text


def test_an_unknown_task_fails_with_the_nearest_name(transport: MemoryTransport) -> None:
    result = transport.result(submit(transport, "bed.ecko", 1), 5)
    assert result.error is not None
    assert result.error.code == "GF210"
    assert "bed.echo" in str(result.error.hint)


def test_jobs_are_listed_newest_first_and_by_state(transport: MemoryTransport) -> None:
    ids = [submit(transport, "bed.echo", n) for n in range(3)]
    for job_id in ids:
        transport.result(job_id, 5)
    assert [job.id for job in transport.jobs(None, 2)] == [ids[2], ids[1]]
    assert transport.jobs("running", 10) == []
    assert len(transport.jobs("done", 10)) == 3


def test_a_job_that_nobody_submitted_is_not_found(transport: MemoryTransport) -> None:
    for ask in (transport.job, transport.cancel, lambda i: transport.result(i, 1)):
        with pytest.raises(JobNotFound):
            ask(new_id())
    with pytest.raises(JobNotFound):
        transport.batch(new_id("batch"))


def test_closing_stops_what_runs(make_transport: Callable[..., MemoryTransport], bed: Any) -> None:
    transport = make_transport()
    job_id = submit(transport, "bed.hang", 0)
    assert bed.hang.begun.wait(5)
    transport.close()
    assert bed.hang.cancelled.is_set()
    result = transport.result(job_id, 1)
    assert result.error is not None
    assert result.error.code == "GF704"


def test_the_worker_says_what_it_is_once_it_has_started(transport: MemoryTransport) -> None:
    assert transport.workers() == []
    transport.result(submit(transport, "bed.echo", 1), 5)
    (worker,) = transport.workers()
    assert worker.plugins == ("bed",)
    assert worker.model == "scripted"
    assert worker.peak_in_flight == 1


def test_a_client_runs_the_built_in_tasks_in_memory() -> None:
    with Client("memory://", engine=ScriptedEngine(generate="one two")) as flow:
        assert flow.run("text.generate", "hi", timeout=5)["text"] == "one two"
        assert "".join(flow.stream("text.generate", "hi", timeout=5)) == "one two"
        batch = flow.submit_many("text.generate", ["a", "b", {"id": "x", "text": "c"}])
        assert [result.ok for result in batch.results(5)] == [True] * 3


def test_a_client_without_an_engine_loads_the_settings_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GPTFLOW_MODEL", "scripted")
    with Client("memory://") as flow:
        assert flow.run("text.generate", "hi", timeout=5)["text"] == "A scripted answer."
    assert "every answer is scripted" in caplog.text


def test_a_model_that_cannot_be_loaded_fails_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("GPTFLOW_MODEL", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GPTFLOW_OFFLINE", "1")
    with Client("memory://") as flow:
        result = flow.submit("text.generate", "hi").wait(20)
    assert result.error is not None
    assert result.error.code == "GF601"
