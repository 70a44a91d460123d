"""A thousand cancellations, half of jobs that wait and half of jobs that run."""

from __future__ import annotations

import time
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import percentile, wait_until

pytestmark = pytest.mark.timeout(1800)

BOUND = 0.25
FOR_EVER = 20_000
SINGLY = 20


def test_what_is_cancelled_stops_at_once_or_never_starts(bed: Any, size: Sizes) -> None:
    half = size.cancels // 2
    room = half // 2
    bed.fleet.start(2, concurrency=room, slots=room, in_flight=room, watchdog=600)
    # All room may be taken, the share of interactive jobs included.
    jobs = [
        bed.journal.submit_surely("faults.work", {"tokens": FOR_EVER}, job_class="interactive")
        for _ in range(half)
    ]
    wait_until(lambda: len(bed.notes.runs()) == half, 60, what="half of them running")
    waiting = [bed.journal.submit_surely("faults.work", {"tokens": FOR_EVER}) for _ in range(half)]
    never = {job.id for job in waiting}
    for job in waiting:
        assert job.cancel()
    asked: dict[str, float] = {}

    def stop(job: Any) -> None:
        asked[job.id] = time.time()
        assert job.cancel()

    # One at a time first: how fast this machine can be.
    singly = []
    for job in jobs[:SINGLY]:
        stop(job)
        wait_until(lambda job=job: job.id in _stopped(bed), 30, what="its end", every=0.002)
        singly.append(_stopped(bed)[job.id] - asked[job.id])
    alone = percentile(singly, 0.5)
    started = time.monotonic()
    for number, job in enumerate(jobs[SINGLY:]):
        # As many a second as it can stop: what is measured is no backlog.
        wait_until(lambda due=started + number * alone: time.monotonic() >= due, every=0.001)
        stop(job)
    again = [job.cancel() for job in [*jobs[:10], *waiting[:10]]]
    wait_until(lambda: _stopped(bed).keys() >= asked.keys(), 30, what="the end of all that ran")
    # What could come back does so within a lease and a doorbell's time.
    fresh = [bed.journal.submit_surely("faults.work", {"tokens": 1}) for _ in range(50)]
    bed.journal.wait(seconds=60)

    delays = [_stopped(bed)[job_id] - at for job_id, at in asked.items()]
    runs = bed.notes.runs()
    states = bed.journal.states()
    tally = bed.journal.check("1,000 cancels, half queued, half running", bed.notes)
    started = never & runs.keys()
    tally.add(
        cancelled=states["cancelled"],
        queued_ones_started=len(started),
        abort_singly_ms=round(1000 * alone),
        abort_p50_ms=round(1000 * percentile(delays, 0.5)),
        abort_p99_ms=round(1000 * percentile(delays, 0.99)),
        resurrected=sum(len(found) > 1 for found in runs.values()),
    )
    tally.tell()
    assert (tally.lost, tally.doubled, tally.recovered) == (0, 0, 0)
    assert states == {"cancelled": 2 * half, "done": len(fresh)}
    assert not started
    assert not any(again), "what has ended cannot be cancelled"
    assert percentile(delays, 0.99) <= max(BOUND, 20 * alone)


def _stopped(bed: Any) -> dict[str, float]:
    return {note.job_id: note.time for note in bed.notes.read() if note.kind == "stop"}
