"""Messages that nobody should have sent: refused with a code, and the worker lives."""

from __future__ import annotations

import base64
import json
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow.envelope import Envelope, new_id
from gptflow.errors import InvalidInput
from gptflow.queue.message import celery_message
from gptflow.queue.payload import Packed, dumps

pytestmark = pytest.mark.timeout(600)

SECRET = "my-secret-payload"
HUGE = 50 << 20


def message(wire: Any, **changes: Any) -> str:
    """A Celery message that carries this in place of an envelope."""
    envelope = Envelope(task="faults.work", input={"number": 1})
    given = wire if isinstance(wire, str) else dumps(wire)
    text = json.loads(celery_message(Packed(envelope=envelope, wire=given)))
    for name, value in changes.items():
        old = text[name.replace("_", "-")]
        text[name.replace("_", "-")] = old | value if isinstance(old, dict) else value
    return json.dumps(text)


def wire(**changes: Any) -> dict[str, Any]:
    given = {"v": 1, "id": new_id(), "task": "faults.work", "input": {"number": 1}}
    return given | changes


UNRECORDED: dict[str, Callable[[], str]] = {
    "not JSON": lambda: SECRET,
    "pickle content type": lambda: message(
        wire(), content_type="application/x-python-serialize", body=_pickled()
    ),
    "bad base64": lambda: message(wire(), body="!!!" + SECRET),
    "body is no JSON": lambda: message(wire(), body=_base64(SECRET)),
    "unknown Celery task": lambda: message(wire(), headers={"task": "os.system"}),
    "an id with ../": lambda: message(wire(id="job_../../../etc/passwd")),
    "a doorbell with ../": lambda: message(json.dumps("../../secret")),
    "a doorbell of nobody": lambda: message(json.dumps(new_id())),
    "an unknown task": lambda: message(wire(task="no.such_task")),
    "a deadline that has passed": lambda: message(wire(deadline=time.time() - 1)),
    "a later version": lambda: message(wire(v=99, input={"x": SECRET})),
    "a class that is none": lambda: message(wire(**{"class": "royal"})),
    "50 MB": lambda: message(wire(input={"filler": "x" * HUGE})),
    "a list": lambda: message([1, 2, 3]),
}


def test_no_message_harms_the_worker(bed: Any, size: Sizes) -> None:
    (worker,) = bed.fleet.start()
    store, journal = bed.store, bed.journal
    key = store.keys.queue("standard")
    for name, make in UNRECORDED.items():
        store.client.lpush(key, make())
        job = journal.submit_surely("faults.work", {"number": 1})
        assert job.wait(60).ok, name
        assert worker.alive, name
        wait_until(lambda: bed.queued() == 0, what=name)
    tally = journal.check("malformed messages", bed.notes)
    tally.add(kinds=len(UNRECORDED))
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert set(bed.notes.runs()) == set(journal.submitted), "something else has run"
    assert "os.system" in worker.output
    assert "are allowed" in worker.output, "50 MB were not refused"
    assert SECRET not in worker.output
    assert _base64(SECRET) not in worker.output
    assert "Unrecoverable" not in worker.output
    assert "PickleError" not in worker.output


def test_what_a_message_wants_sent_afterwards_is_not_sent(bed: Any, size: Sizes) -> None:
    (worker,) = bed.fleet.start()
    evil = {"task": "os.system", "args": ["true"], "kwargs": {}, "options": {}}
    embed = {"callbacks": [evil], "errbacks": [evil], "chain": [evil], "chord": None}
    given = wire()
    bed.store.client.lpush(
        bed.store.keys.queue("standard"),
        message(given, body=_base64(json.dumps([[given], {}, embed]))),
    )
    wait_until(lambda: given["id"] in bed.journal.ends, what="the job's end")
    bed.fleet.stop()
    left = bed.queued()
    bed.store.client.delete(bed.store.keys.queue("standard"))
    assert left == 0
    assert "os.system" not in worker.output


def test_what_was_recorded_ends_with_a_code(bed: Any, size: Sizes) -> None:
    bed.fleet.start()
    store = bed.store
    expected = {
        "a later version": (wire(v=99), "failed", "GF300"),
        "a class that is none": (wire(**{"class": "royal"}), "failed", "GF300"),
        "an unknown task": (wire(task="no.such_task"), "failed", "GF210"),
        "an unknown field": (wire(more=1), "failed", "GF300"),
        "an input that does not fit": (wire(input={"number": "x"}), "failed", "GF300"),
        "no JSON": ("{", "failed", "GF303"),
        "a reference to another's key": (_reference(store.keys.totals), "failed", "GF300"),
        "a deadline that has passed": (wire(deadline=time.time() - 1), "expired", "GF504"),
    }
    seen = {}
    for name, (given, _, _) in expected.items():
        fields = given if isinstance(given, dict) else wire()
        envelope = Envelope(
            task=str(fields["task"]), input={"number": 1}, deadline=fields.get("deadline")
        )
        fields = fields | {"id": envelope.id}
        text = dumps(fields) if isinstance(given, dict) else given
        job_id = store.submit(Packed(envelope=envelope, wire=text))
        bed.journal.submitted[job_id] = time.time()
        seen[name] = job_id
    bed.journal.wait()
    tally = bed.journal.check("malformed jobs with a record", bed.notes)
    tally.add(kinds=len(expected))
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    for name, (_, state, code) in expected.items():
        result = bed.journal.client.job(seen[name]).wait(5)
        assert (result.state, result.error and result.error.code) == (state, code), name


def test_a_caller_is_told_before_anything_is_sent(bed: Any, size: Sizes) -> None:
    before = set(bed.store.client.scan_iter())
    with pytest.raises(InvalidInput, match="are allowed"):
        bed.journal.client.submit("faults.work", {"filler": "x" * HUGE})
    for packed in (
        Packed(envelope=_unchecked(id="job_../../secret"), wire="{}"),
        Packed(envelope=_unchecked(tenant="../secret"), wire="{}"),
        Packed(envelope=_unchecked(task="a/../b"), wire="{}"),
    ):
        with pytest.raises(InvalidInput, match="malformed"):
            bed.store.submit(packed)
    assert set(bed.store.client.scan_iter()) == before


def _unchecked(**changes: Any) -> Envelope:
    return Envelope(task="faults.work", input={}).model_copy(update=changes)


def _reference(key: str) -> dict[str, Any]:
    given = wire(input_ref=key)
    del given["input"]
    return given


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _pickled() -> str:
    return base64.b64encode(pickle.dumps([[SECRET], {}, {}])).decode()
