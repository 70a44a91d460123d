"""What a worker does with what it should not get, and how it starts and stops."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.envelope import Envelope, new_id
from gptflow.queue.app import make_app
from gptflow.queue.control import stats
from gptflow.queue.keys import CLASSES
from gptflow.queue.message import TASK, celery_message
from gptflow.queue.payload import Packed, dumps, pack

Eventually = Callable[[Callable[[], bool]], None]


def push(flow: Client, message: str) -> None:
    store = flow.transport.store
    store.client.lpush(store.keys.queue("standard"), message)


def message_for(wire: dict[str, Any], **headers: Any) -> str:
    job_id = wire.get("id") or new_id()
    envelope = Envelope(id=job_id, task="bed.echo", input=1)
    message = json.loads(celery_message(Packed(envelope=envelope, wire=dumps(wire))))
    message["headers"] |= headers
    return json.dumps(message)


def test_junk_in_the_queue_does_not_harm_the_worker(flow: Client, worker: Any) -> None:
    good = json.loads(message_for({"id": new_id(), "task": "bed.echo", "input": {"value": 1}}))
    secret = base64.b64encode(b"my-secret-payload{{{").decode()
    for junk in (
        "this is not JSON",
        "\x00\x01",
        "[1, 2]",
        '"text"',
        "{}",
        json.dumps(good | {"body": secret}),
        json.dumps(good | {"body": "!!!"}),
        json.dumps(good | {"headers": {}}),
        json.dumps(good | {"headers": good["headers"] | {"task": "os.system"}}),
        json.dumps(good | {"content-type": "application/x-python-serialize"}),
        json.dumps(good | {"properties": {}}),
    ):
        push(flow, junk)
        assert flow.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}
    assert worker.popen.poll() is None
    assert "Dropped" in worker.output
    assert "os.system" in worker.output
    assert "my-secret-payload" not in worker.output
    assert secret not in worker.output


def test_an_envelope_of_a_later_version_is_refused_on_record(flow: Client) -> None:
    envelope = Envelope(task="bed.echo", input={"value": 1})
    store = flow.transport.store
    store.submit(Packed(envelope=envelope, wire=dumps(envelope.to_wire() | {"v": 99})))
    result = flow.job(envelope.id).wait(20)
    assert result.state == "failed"
    assert result.error is not None
    assert "version 99" in result.error.message


def test_a_malformed_envelope_is_refused_on_record(flow: Client) -> None:
    envelope = Envelope(task="bed.echo", input={"value": 1})
    store = flow.transport.store
    store.submit(Packed(envelope=envelope, wire=dumps(envelope.to_wire() | {"class": "royal"})))
    result = flow.job(envelope.id).wait(20)
    assert result.error is not None
    assert result.error.code == "GF300"


def test_a_message_that_celery_sent_is_adopted(flow: Client, eventually: Eventually) -> None:
    envelope = Envelope(task="bed.echo", input={"value": 5})
    app = make_app(flow.settings)
    app.send_task(TASK, [envelope.to_wire()], task_id=envelope.id, queue="gf.standard")
    app.close()
    eventually(lambda: any(j.id == envelope.id for j in flow.transport.jobs("done", 50)))
    assert flow.job(envelope.id).result(5) == {"value": 5}


def test_a_message_by_hand_is_one_that_celery_would_send(own: Client) -> None:
    envelope = Envelope(task="bed.echo", input={"value": 5})
    store = own.transport.store
    app = make_app(own.settings)
    app.send_task(
        TASK, [envelope.to_wire()], task_id=envelope.id, queue="gf.standard", shadow="bed.echo"
    )
    app.close()
    lengths = [store.client.llen(store.keys.queue(job_class)) for job_class in CLASSES]
    assert lengths == [0, 1, 0]
    celerys = json.loads(store.client.rpop(store.keys.queue("standard")))
    ours = json.loads(celery_message(pack(envelope, reference="", inline=100, limit=1000)))
    assert set(ours) == set(celerys)
    assert set(ours["properties"]) <= set(celerys["properties"])
    assert set(ours["headers"]) <= set(celerys["headers"])
    for message in (ours, celerys):
        args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
        assert (args, kwargs) == ([envelope.to_wire()], {})
        assert set(embed) == {"callbacks", "errbacks", "chain", "chord"}


def test_a_message_that_comes_twice_is_run_once(flow: Client, eventually: Eventually) -> None:
    envelope = Envelope(task="bed.sleep", input={"value": 0.5})
    store = flow.transport.store
    packed = pack(envelope, reference="", inline=100, limit=1000)
    store.submit(packed)
    push(flow, celery_message(packed))
    job = flow.job(envelope.id)
    assert job.wait(20).ok
    push(flow, celery_message(packed))
    flow.run("bed.echo", {"value": 1}, timeout=20)
    assert store.client.hget(store.keys.job(envelope.id), "attempt") == "1"


def test_a_revoked_job_is_cancelled_for_celery_and_for_us(
    flow: Client, notes: Path, eventually: Eventually
) -> None:
    job = flow.submit("bed.sleep", {"value": 3600})
    eventually(lambda: job.state == "running")
    app = make_app(flow.settings)
    app.control.revoke(job.id, terminate=True)
    app.close()
    assert job.wait(20).state == "cancelled"
    eventually(lambda: f"cancelled {job.id}" in notes.read_text())


@pytest.mark.parametrize("limits", [[0.3, None], [None, 0.3]], ids=["hard", "soft"])
def test_celerys_time_limits_stop_a_job(
    flow: Client, notes: Path, eventually: Eventually, limits: list[float | None]
) -> None:
    envelope = Envelope(task="bed.sleep", input={"value": 3600})
    push(flow, message_for(envelope.to_wire(), timelimit=limits))
    eventually(lambda: any(j.id == envelope.id for j in flow.transport.jobs("failed", 50)))
    result = flow.job(envelope.id).wait(5)
    assert result.error is not None
    assert result.error.code == "GF504"
    eventually(lambda: f"cancelled {envelope.id}" in notes.read_text())


def test_cancelled_and_late_jobs_of_the_queue_are_never_run(
    own: Client, start_worker: Callable[..., Any], notes: Path
) -> None:
    cancelled = own.submit("bed.echo", {"value": "observed"})
    batch = own.submit_many("bed.echo", [{"value": "observed"}] * 100)
    assert cancelled.cancel()
    assert batch.cancel()
    assert cancelled.wait(1).state == "cancelled"
    assert {result.state for result in batch.results(1)} == {"cancelled"}
    late = own.submit("bed.echo", {"value": "observed"}, timeout=0.01)
    time.sleep(0.02)
    worker = start_worker(app=own.settings.app)
    result = late.wait(20)
    assert result.state == "expired"
    assert result.error is not None
    assert result.error.code == "GF504"
    own.run("bed.echo", {"value": 1}, timeout=20)
    assert cancelled.id not in notes.read_text()
    assert batch.id not in notes.read_text()
    assert worker.terminate() == 0


def test_interactive_jobs_go_first_and_batches_last(
    own: Client, start_worker: Callable[..., Any]
) -> None:
    classes = ("batch", "standard", "interactive")
    jobs = {name: own.submit("bed.echo", {"value": 1}, job_class=name) for name in classes}
    worker = start_worker(app=own.settings.app, concurrency="1")
    started = {}
    for name, job in jobs.items():
        job.wait(20)
        started[name] = job.record.started or 0
    assert started["interactive"] < started["standard"] < started["batch"]
    assert worker.terminate() == 0


@pytest.mark.parametrize("limit", [{"concurrency": "2"}, {"in_flight": "2"}], ids=str)
def test_jobs_that_map_cannot_wait_for_one_another(
    own: Client, start_worker: Callable[..., Any], limit: dict[str, str]
) -> None:
    worker = start_worker(app=own.settings.app, **limit)
    jobs = [own.submit("bed.spread", {"value": 150}) for _ in range(6)]
    assert all(job.wait(40).ok for job in jobs)
    assert worker.terminate() == 0


def test_terminate_lets_what_runs_finish_and_leaves_the_rest(
    own: Client, start_worker: Callable[..., Any], tmp_path: Path, eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app, concurrency="4")
    gate = tmp_path / "gate"
    running = [own.submit("bed.gate", {"value": str(gate)}) for _ in range(4)]
    eventually(lambda: all(job.state == "running" for job in running))
    waiting = own.submit("bed.echo", {"value": 1})
    worker.popen.terminate()
    eventually(lambda: "shutdown" in worker.output)
    gate.touch()
    assert worker.popen.wait(30) == 0
    assert all(job.wait(1).ok for job in running)
    assert waiting.state == "queued"
    assert own.transport.workers() == []
    again = start_worker(app=own.settings.app)
    assert waiting.result(20) == {"value": 1}
    assert again.terminate() == 0


def test_quit_stops_at_once_and_hands_back_what_runs(
    own: Client, start_worker: Callable[..., Any], eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app)
    job = own.submit("bed.sleep", {"value": 3600})
    eventually(lambda: job.state == "running")
    worker.popen.send_signal(signal.SIGQUIT)
    worker.popen.wait(20)
    assert job.state == "queued"
    assert (job.record.attempt, job.record.crashes) == (0, 0)


def test_what_does_not_end_in_the_grace_is_handed_back_uncharged(
    own: Client, start_worker: Callable[..., Any], eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app, grace="0.5")
    jobs = [own.submit("bed.sleep", {"value": 3600}) for _ in range(20)]
    batch = own.submit_many("bed.sleep", [{"value": 0}, {"value": 3600}])
    eventually(lambda: all(job.state == "running" for job in jobs))
    eventually(lambda: batch.record.done == 1)
    assert worker.terminate() == 0
    assert {(job.state, job.record.attempt) for job in jobs} == {("queued", 0)}
    assert batch.record.done == 1


def test_a_job_of_a_killed_worker_is_run_again_by_another(
    own: Client, start_worker: Callable[..., Any], eventually: Eventually
) -> None:
    worker = start_worker(app=own.settings.app, lease="1")
    job = own.submit("bed.words", {"value": 30}, stream=True)
    store = own.transport.store
    eventually(lambda: bool(store.read_events(job.id, "0", 0.01)))
    worker.kill()
    again = start_worker(app=own.settings.app, lease="1")
    text, resets = "", 0
    for event in job.events(timeout=30):
        if event.kind == "reset":
            text, resets = "", resets + 1
        text += event.text
    assert resets == 1
    assert text == job.result(5)["value"]
    assert (job.record.attempt, job.record.crashes) == (1, 1)
    assert again.terminate() == 0


def test_an_error_that_may_pass_is_tried_again_and_charged(
    own: Client, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(app=own.settings.app, max_attempts="2")
    job = own.submit("bed.flaky", {"value": 1})
    assert job.result(20) == {"value": "attempt 2"}
    assert job.record.attempt == 2
    hopeless = own.submit("bed.flaky", {"value": 5})
    result = hopeless.wait(20)
    assert result.error is not None
    assert result.error.code == "GF705"
    assert hopeless.record.attempt == 2
    assert worker.terminate() == 0


def test_a_job_that_kills_its_worker_is_found_out_and_its_neighbours_are_not_blamed(
    own: Client, start: Callable[..., Any], start_worker: Callable[..., Any]
) -> None:
    settings = {"app": own.settings.app, "lease": "0.6"}
    values = ["poison" if number == 20 else number for number in range(40)]
    jobs = [own.submit("bed.poison", {"value": value}) for value in values]
    for _ in range(3):
        assert start("gptflow_workers.cpu", **settings).popen.wait(60) == -signal.SIGKILL
    last = start_worker(**settings)
    results = [job.wait(30) for job in jobs]
    assert [result.state for result in results].count("done") == 39
    dead = results[20]
    assert dead.state == "dead"
    assert dead.error is not None
    assert dead.error.code == "GF505"
    assert [job.id for job in own.transport.store.dead(5)] == [jobs[20].id]
    assert "runs alone" in own.transport.store.last_words(jobs[20].id)
    assert own.transport.store.purge([jobs[20].id]) == 1
    assert last.terminate() == 0


def test_a_row_that_kills_its_worker_is_found_out_in_its_message(
    own: Client, start: Callable[..., Any], start_worker: Callable[..., Any]
) -> None:
    settings = {"app": own.settings.app, "lease": "0.6"}
    values = ["poison" if number in (3, 7) else number for number in range(10)]
    batch = own.submit_many("bed.poison", [{"value": value} for value in values])
    for _ in range(4):
        assert start("gptflow_workers.cpu", **settings).popen.wait(60) == -signal.SIGKILL
    last = start_worker(**settings)
    states = [result.error.code if result.error else "ok" for result in batch.results(30)]
    assert states == ["ok"] * 3 + ["GF505"] + ["ok"] * 3 + ["GF505"] + ["ok"] * 2
    assert last.terminate() == 0


def test_a_worker_whose_engine_has_stopped_ends_and_leaves_its_jobs_to_another(
    own: Client, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(app=own.settings.app, concurrency="1")
    wreck = own.submit("bed.wreck", {"value": 0})
    others = [own.submit("text.generate", "hi") for _ in range(20)]
    assert wreck.wait(20).ok
    assert worker.popen.wait(20) == 1
    assert "The engine has stopped" in worker.output
    assert own.transport.workers() == []
    assert {job.state for job in others} == {"queued"}
    again = start_worker(app=own.settings.app)
    assert all(job.wait(20).ok for job in others)
    assert again.terminate() == 0


@pytest.mark.parametrize(
    ("entry_point", "code", "said"),
    [
        ("broken = gptflow_broken", 7, "Plugin 'broken' failed to load: ZeroDivisionError"),
        ("broken = gptflow_no_such_module", 7, "ModuleNotFoundError"),
    ],
)
def test_a_worker_refuses_to_start_with_a_broken_plugin(
    start: Callable[..., Any], testbed: Path, entry_point: str, code: int, said: str
) -> None:
    (testbed / "gptflow_broken.py").write_text("1 / 0\n")
    info = testbed / "gptflow_broken-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gptflow-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gptflow]\n{entry_point}\n")
    worker = start("gptflow_workers.cpu", plugins="text,broken")
    assert worker.popen.wait(60) == code
    assert said in worker.output
    assert "Traceback" not in worker.output


def test_a_worker_without_a_server_says_which_and_hides_the_password(
    start: Callable[..., Any],
) -> None:
    worker = start("gptflow_workers.cpu", redis_url="redis://:hunter2@127.0.0.1:1/0")
    assert worker.popen.wait(60) == 5
    assert "127.0.0.1:1" in worker.output
    assert "hunter2" not in worker.output
    assert "Traceback" not in worker.output


def test_a_worker_without_a_model_says_how_to_get_it(start: Callable[..., Any]) -> None:
    worker = start("gptflow_workers.cpu", model="/nowhere/to/be/found", offline="1")
    assert worker.popen.wait(60) == 6
    assert "/nowhere/to/be/found" in worker.output
    assert "Traceback" not in worker.output


def test_celerys_own_command_starts_the_same_worker(flow: Client) -> None:
    (node,) = stats(flow.settings).values()
    assert node["pool"]["implementation"] == "gptflow.queue.pool:EnginePool"
    assert node["pool"]["plugins"] == ["text", "testbed"]
