"""Messages that should never have been sent: each is refused with a code, and the worker lives."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.envelope import Envelope, new_id
from gptflow.errors import JobNotFound
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.message import celery_message
from gptflow.queue.payload import Packed, dumps, pack
from gptflow.queue.signing import Signer
from gptflow.result import Result

Eventually = Callable[..., None]

MB = 1 << 20
KEY = "the key of these tests, long enough"


def raw(envelope: dict[str, Any], job_id: str = "", **changes: Any) -> dict[str, Any]:
    """A Celery message as another language would write it."""
    job_id = job_id or str(envelope.get("id", new_id()))
    known = Envelope(id=new_id(), task="bed.echo", input=1)
    text = celery_message(Packed(envelope=known, wire=dumps(envelope)))
    message: dict[str, Any] = json.loads(text)
    message["headers"]["id"] = message["properties"]["correlation_id"] = job_id
    return message | changes


def with_body(message: dict[str, Any], body: Any) -> dict[str, Any]:
    return message | {"body": base64.b64encode(json.dumps(body).encode()).decode()}


def push(flow: Client, message: dict[str, Any] | str) -> None:
    store = flow.transport.store
    text = message if isinstance(message, str) else json.dumps(message)
    store.client.lpush(store.keys.queue("standard"), text)


def end_of(flow: Client, job_id: str, eventually: Eventually) -> Result:
    """The result of a job that may have no record yet."""

    def known() -> bool:
        try:
            return flow.job(job_id).record is not None
        except JobNotFound:
            return False

    eventually(known)
    return flow.job(job_id).wait(20)


def code_of(result: Result) -> str:
    assert result.error is not None
    assert result.state in ("failed", "expired")
    return result.error.code


@pytest.fixture
def alive(flow: Client, worker: Any) -> Iterator[None]:
    """The same worker answers after the test."""
    yield
    assert flow.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}
    assert worker.popen.poll() is None


pytestmark = pytest.mark.usefixtures("alive")


def echo(job_id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "id": job_id or new_id(), "task": "bed.echo", "input": {"value": 7}} | fields


def test_a_message_of_pickle_is_refused_unread(flow: Client, eventually: Eventually) -> None:
    job_id = new_id()
    message = raw(echo(job_id), **{"content-type": "application/x-python-serialize"})
    push(flow, message | {"body": base64.b64encode(b"cos\nsystem\n(S'false'\ntR.").decode()})
    assert code_of(end_of(flow, job_id, eventually)) == "GF303"


@pytest.mark.parametrize("body", ["!!!", "%%%=", base64.b64encode(b"{not json").decode(), ""])
def test_a_body_that_cannot_be_decoded_is_refused(
    flow: Client, worker: Any, eventually: Eventually, body: str
) -> None:
    before = worker.output.count("GF303")
    push(flow, raw(echo(), body=body))
    eventually(lambda: worker.output.count("GF303") > before)


@pytest.mark.parametrize("name", ["os.system", "celery.map", "celery.chord_unlock", "celery.chain"])
def test_a_celery_task_that_is_not_listed_is_not_run(
    flow: Client, eventually: Eventually, name: str
) -> None:
    message = raw(echo(job_id := new_id()))
    message["headers"]["task"] = name
    push(flow, message)
    result = end_of(flow, job_id, eventually)
    assert code_of(result) == "GF210"
    assert name in str(result.error)


def test_an_unknown_task_of_ours_is_refused(flow: Client, eventually: Eventually) -> None:
    push(flow, raw(echo(job_id := new_id(), task="no.such")))
    assert code_of(end_of(flow, job_id, eventually)) == "GF210"


def test_an_envelope_of_version_99_is_refused(flow: Client, eventually: Eventually) -> None:
    push(flow, raw(echo(job_id := new_id(), v=99)))
    result = end_of(flow, job_id, eventually)
    assert code_of(result) == "GF300"
    assert "version 99" in str(result.error)


@pytest.mark.parametrize("job_id", ["job_../../etc/passwd", "../x", "job_", "x" * 5000, "", "9"])
def test_an_id_that_is_none_is_refused_and_leaves_no_key(
    flow: Client, worker: Any, eventually: Eventually, job_id: str
) -> None:
    client, refused = flow.transport.store.client, flow.transport.store.keys.refused

    def count() -> int:
        return int(client.xinfo_stream(refused)["entries-added"]) if client.exists(refused) else 0

    before = count()
    push(flow, raw(echo() | {"id": job_id}, job_id=job_id))
    push(flow, raw(echo() | {"id": job_id}, job_id="job_0123456789"))
    eventually(lambda: count() >= before + 2)
    assert not [key for key in client.scan_iter(count=1000) if "passwd" in key or "xxxx" in key]


def test_an_expired_message_is_not_run(flow: Client, notes: Path, eventually: Eventually) -> None:
    past = time.time() - 1
    push(flow, raw(echo(job_id := new_id(), input={"value": "observed"}, deadline=past)))
    result = end_of(flow, job_id, eventually)
    assert (result.state, code_of(result)) == ("expired", "GF504")
    message = raw(echo(job_id := new_id(), input={"value": "observed"}))
    message["headers"]["expires"] = "2020-01-01T00:00:00+00:00"  # as Celery says it
    push(flow, message)
    result = end_of(flow, job_id, eventually)
    assert (result.state, code_of(result)) == ("expired", "GF504")
    assert job_id not in notes.read_text()


def test_a_time_to_wait_for_is_kept_in_the_ledger_not_in_a_worker(
    flow: Client, eventually: Eventually
) -> None:
    message = raw(echo(job_id := new_id()))
    message["headers"]["eta"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    push(flow, message)
    store = flow.transport.store
    eventually(lambda: store.client.zscore(f"{store.keys.prefix}delayed", job_id) is not None)
    assert flow.job(job_id).state == "queued"
    assert flow.job(job_id).result(20) == {"value": 7}
    record = flow.job(job_id).record
    assert (record.started or 0) - (record.submitted or 0) > 1


def test_a_message_of_50_mb_is_dropped_as_it_came(flow: Client, eventually: Eventually) -> None:
    worker_pid = next(w.pid for w in flow.transport.workers())
    before = peak_memory(worker_pid)
    for wire in (echo(), echo(input="x" * 37 * MB)):
        job_id = str(wire["id"])
        message = raw(wire)
        if wire["input"] == {"value": 7}:
            message["filler"] = "x" * 50 * MB
        push(flow, message)
        result = end_of(flow, job_id, eventually)
        assert code_of(result) == "GF303"
        assert "allowed" in str(result.error)
    assert peak_memory(worker_pid) - before < 250 * MB


def peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_message_that_unpacks_to_gigabytes_is_not_unpacked(
    flow: Client, worker: Any, eventually: Eventually
) -> None:
    before = worker.output.count("GF303")
    message = raw(echo())
    message["headers"]["compression"] = "application/x-gzip"
    bomb = zlib.compress(b"[" * 200 * MB)
    push(flow, message | {"body": base64.b64encode(bomb).decode()})
    eventually(lambda: worker.output.count("GF303") > before)
    worker_pid = next(w.pid for w in flow.transport.workers())
    assert peak_memory(worker_pid) < 1500 * MB


def test_an_input_over_the_limit_is_refused_though_it_came_past_the_client(
    flow: Client, eventually: Eventually
) -> None:
    push(flow, raw(echo(job_id := new_id(), input={"value": "x" * 9 * MB})))
    result = end_of(flow, job_id, eventually)
    assert code_of(result) == "GF300"
    assert "GF" not in str(result.output)


def test_large_inputs_and_outputs_go_through_whole_and_larger_ones_are_refused(
    flow: Client, eventually: Eventually
) -> None:
    value = "ü🎉x" * (1 * MB)
    job = flow.submit("bed.echo", {"value": value})
    store = flow.transport.store
    assert '"input_ref"' in (store.client.hget(store.keys.job(job.id), "wire") or '"input_ref"')
    assert job.result(30) == {"value": value}
    result = flow.submit("bed.swell", {"value": 25}).wait(30)
    assert code_of(result) == "GF204"


def test_an_input_of_another_job_cannot_be_read(flow: Client, eventually: Eventually) -> None:
    store = flow.transport.store
    secret = flow.submit("bed.sleep", {"value": 0.5, "pad": "s" * 100_000})
    envelope = Envelope(task="bed.echo", input_ref=store.keys.input(secret.id))
    push(flow, raw(envelope.to_wire()))
    assert code_of(end_of(flow, envelope.id, eventually)) == "GF303"
    other = Envelope(task="bed.echo", input_ref=store.keys.input(secret.id))
    store.submit(Packed(envelope=other, wire=dumps(other.to_wire())))
    assert code_of(flow.job(other.id).wait(20)) == "GF300"


def test_an_input_that_was_changed_on_the_way_is_refused(own: Client, start_worker: Any) -> None:
    store = own.transport.store
    job = own.submit("bed.echo", {"value": "x" * 100_000})
    store.client.set(store.keys.input(job.id), '{"value": "forged"}')
    worker = start_worker(app=own.settings.app)
    assert code_of(job.wait(20)) == "GF303"
    assert worker.terminate() == 0


def test_a_refused_message_ends_nobody_elses_job(flow: Client, eventually: Eventually) -> None:
    job = flow.submit("bed.sleep", {"value": 1.0})
    eventually(lambda: job.state == "running")
    push(flow, raw(echo(job.id, v=99)))
    assert job.wait(20).ok


def test_what_a_message_says_comes_after_it_is_ignored_with_a_warning(
    flow: Client, worker: Any, notes: Path, eventually: Eventually
) -> None:
    after = {
        "task": "gptflow.run",
        "args": [echo(after_id := new_id(), input={"value": "observed"})],
        "kwargs": {},
        "options": {},
    }
    for place in ("headers", "body"):
        for name in ("callbacks", "errbacks", "chain", "chord"):
            message = raw(echo(job_id := new_id()))
            value = after if name == "chord" else [after]
            if place == "body":
                message = with_body(message, [[echo(job_id)], {}, {name: value}])
            else:
                message["headers"][name] = value
            push(flow, message)
            assert end_of(flow, job_id, eventually).ok
            warning = f"The {name} in the message of job {job_id}"
            eventually(lambda line=warning: line in worker.output)
    assert "GPTFLOW_ALLOW_CHAINS" in worker.output
    with pytest.raises(JobNotFound):
        flow.transport.job(after_id)
    assert after_id not in notes.read_text()


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        "text",
        5,
        None,
        [1, 2],
        [[], {}, {}],
        [{}, {}, {}],
        [[1, 2, 3], {}, {}],
        [[1], {"a": 1}, {}],
    ],
    ids=repr,
)
def test_arguments_that_are_no_envelope_are_refused(
    flow: Client, worker: Any, eventually: Eventually, body: Any
) -> None:
    job_id = new_id()
    push(flow, with_body(raw(echo(job_id)), body))
    assert code_of(end_of(flow, job_id, eventually)) in ("GF300", "GF303")


def test_the_first_protocol_is_refused(flow: Client, worker: Any, eventually: Eventually) -> None:
    before = worker.output.count("GF303")
    body = {"task": "gptflow.run", "id": "1", "args": [echo()], "kwargs": {}, "retries": 0}
    message = with_body(raw(echo()), body)
    del message["headers"]["task"]
    push(flow, message)
    eventually(lambda: worker.output.count("GF303") > before)


def test_no_text_of_a_job_is_in_the_log(flow: Client, worker: Any) -> None:
    secret = "a secret that must stay one"
    flow.run("bed.echo", {"value": secret}, timeout=20)
    flow.submit("bed.echo", {"value": [secret], "nonsense": secret}).wait(20)
    push(flow, raw(echo(input={"value": secret}, nonsense=secret)))
    push(flow, raw(echo(input={"value": secret}), body=secret))
    flow.run("bed.echo", {"value": 1}, timeout=20)
    assert secret not in worker.output


# Signatures.


@pytest.fixture(scope="module")
def signed(
    server: EmbeddedServer, start_worker: Callable[..., Any]
) -> Iterator[tuple[Client, Any]]:
    """A client that signs, and a worker that asks for that."""
    running = start_worker(app="signed", signing_key=KEY, signing_key_previous=KEY + " of old")
    settings = config.load(redis_url=server.url, app="signed", signing_key=KEY)
    with Client(settings=settings) as client:
        yield client, running
    assert running.terminate() == 0
    assert KEY not in running.output


def submit_raw(flow: Client, envelope: Envelope, wire: str, signature: str | None) -> Result:
    store = flow.transport.store
    store.submit(Packed(envelope=envelope, wire=wire, signature=signature))
    return flow.job(envelope.id).wait(20)


def test_signed_jobs_are_run(signed: tuple[Client, Any]) -> None:
    flow, _ = signed
    assert flow.run("bed.echo", {"value": "ü"}, timeout=20) == {"value": "ü"}
    large = {"value": "x" * 100_000}
    assert flow.run("bed.echo", large, timeout=20) == large
    batch = flow.submit_many("bed.echo", [{"value": n} for n in range(100)])
    assert all(result.ok for result in batch.results(20))
    assert flow.run("bed.spread", {"value": 70}, timeout=20) == {"value": 2415}


def test_jobs_signed_with_the_previous_key_are_run(
    signed: tuple[Client, Any], server: EmbeddedServer
) -> None:
    settings = config.load(redis_url=server.url, app="signed", signing_key=KEY + " of old")
    with Client(settings=settings) as flow:
        assert flow.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}


def test_unsigned_and_forged_jobs_are_refused_on_record(
    signed: tuple[Client, Any], server: EmbeddedServer
) -> None:
    flow, _ = signed
    with Client(settings=config.load(redis_url=server.url, app="signed")) as unsigned:
        assert code_of(unsigned.submit("bed.echo", {"value": 1}).wait(20)) == "GF310"
    signer = Signer(KEY)
    for forge in (
        lambda wire: (wire, Signer("another key altogether").sign(wire)),
        lambda wire: (wire, ""),
        lambda wire: (wire, "v1="),
        lambda wire: (wire, "ünïcode"),
        lambda wire: (wire + " ", signer.sign(wire)),
        lambda wire: (wire.replace("7", "8", 1), signer.sign(wire)),
    ):
        envelope = Envelope(id="job_00000000", task="bed.echo", input={"value": 7})
        envelope = envelope.model_copy(update={"id": new_id()})
        wire, signature = forge(dumps(envelope.to_wire() | {"seed": 7}))
        assert code_of(submit_raw(flow, envelope, wire, signature)) in ("GF310", "GF303")


def test_a_signed_job_cannot_be_run_again_under_another_id(signed: tuple[Client, Any]) -> None:
    flow, _ = signed
    packed = pack(
        Envelope(task="bed.echo", input={"value": 1}),
        reference="",
        inline=1000,
        limit=1000,
        signer=Signer(KEY),
    )
    other = packed.envelope.model_copy(update={"id": new_id()})
    assert code_of(submit_raw(flow, other, packed.wire, packed.signature)) == "GF303"


def test_a_raw_message_is_signed_as_the_text_that_it_carries(
    signed: tuple[Client, Any], eventually: Eventually
) -> None:
    flow, worker = signed
    wire = json.dumps(echo(job_id := new_id()), indent=1)
    body = [[wire, Signer(KEY).sign(wire)], {}, {}]
    push(flow, with_body(raw(echo(job_id)), body))
    assert end_of(flow, job_id, eventually).output == {"value": 7}
    for arguments in ([echo(job_id := new_id())], [json.dumps(echo(job_id)), "v1=00"]):
        push(flow, with_body(raw(echo(job_id)), [arguments, {}, {}]))
        assert code_of(end_of(flow, job_id, eventually)) == "GF310"
    assert worker.popen.poll() is None
