"""A worker that is frozen for longer than its lease, then goes on as if nothing had happened."""

from __future__ import annotations

import time
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(7200)


def test_every_stale_result_of_a_zombie_is_refused(bed: Any, size: Sizes) -> None:
    jobs = size.zombie_jobs
    (zombie,) = bed.fleet.start(concurrency=jobs, slots=jobs, in_flight=2 * jobs)
    # They would end while it is frozen: all its results are ready at the moment it wakes up.
    tokens = int(size.frozen * 50)
    for number in range(jobs):
        bed.journal.submit_surely("faults.work", {"number": number, "tokens": tokens})
    wait_until(lambda: len(bed.notes.runs()) == jobs, what="all of them running")
    zombie.freeze()
    frozen = time.monotonic()
    (other,) = bed.fleet.start(concurrency=jobs, slots=jobs, in_flight=2 * jobs)
    wait_until(lambda: _taken(bed) == jobs, size.lease + 10, what="all of them taken over")
    wait_until(lambda: time.monotonic() - frozen > size.frozen, size.frozen + 10)
    zombie.thaw()
    woken = time.monotonic()
    bed.journal.wait()
    wait_until(lambda: _over(bed, zombie.pid), size.lease, what="the end of what the zombie ran")
    aborted = time.monotonic() - woken
    wait_until(lambda: _refused(bed, zombie.pid) >= jobs, what="a refusal of each stale result")

    records = bed.journal.read(bed.journal.submitted)
    by_zombie = [row for row in records.values() if f'"pid":{zombie.pid}' in row["result"]]
    tally = bed.journal.check("worker frozen, then continued", bed.notes)
    refused = bed.totals.get("refused_results", 0)
    stopped = sum(n.kind == "stop" and n.pid == zombie.pid for n in bed.notes.read())
    tally.add(
        frozen_for=float(size.frozen),
        stale_results_refused=refused,
        stale_runs_aborted=stopped,
        stale_results_recorded=len(by_zombie),
        zombie_idle_after=aborted,
    )
    tally.tell()
    assert (tally.lost, tally.doubled, tally.recovered) == (0, 0, jobs)
    assert by_zombie == []
    assert _refused(bed, zombie.pid) >= jobs
    assert zombie.alive
    assert other.alive
    # What was a zombie is a worker like any other again.
    bed.fleet.workers.remove(other)
    other.terminate()
    again = bed.journal.submit_surely("faults.work", {"tokens": 1})
    assert again.wait(20).ok


def _taken(bed: Any) -> int:
    return sum(len(runs) > 1 for runs in bed.notes.runs().values())


def _refused(bed: Any, pid: int) -> int:
    """Results of a worker's that were refused, and runs of its that were stopped before."""
    stopped = sum(note.kind == "stop" and note.pid == pid for note in bed.notes.read())
    return int(bed.totals.get("refused_results", 0)) + stopped


def _over(bed: Any, pid: int) -> bool:
    notes = [note for note in bed.notes.read() if note.pid == pid]
    started = sum(note.kind == "start" for note in notes)
    return started == sum(note.kind != "start" for note in notes)
