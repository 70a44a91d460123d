"""Records survive the way to Redis and back."""

from __future__ import annotations

from gptflow.queue import records
from gptflow.transport import BatchRecord, JobRecord, WorkerRecord


def test_a_job_record_survives_as_a_hash() -> None:
    record = JobRecord(id="job_1", task="a.b", state="running", submitted=1.5, items=3)
    flat = records.flatten(record)
    assert all(isinstance(value, str) for value in flat.values())
    assert records.read_job([flat.get(name) for name in records.JOB_FIELDS]) == record


def test_a_batch_record_survives_as_a_hash() -> None:
    for cancelled in (False, True):
        record = BatchRecord(id="batch_1", task="a.b", total=3, done=1, cancelled=cancelled)
        flat = records.flatten(record)
        assert records.read_batch([flat.get(name) for name in records.BATCH_FIELDS]) == record


def test_a_worker_record_of_a_newer_version_can_be_read() -> None:
    record = WorkerRecord(name="w", pid=1, model="m", started=1.0, plugins=("a",))
    newer = records.encode_worker(record).replace('"name"', '"tomorrow": 1, "name"')
    assert records.decode_worker(newer) == record
