"""More work than the worker can do: who waits, and who does not."""

from __future__ import annotations

import collections
import time
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import percentile, wait_until

from gptflow.job import Job

pytestmark = pytest.mark.timeout(1800)

SLOTS = 16
TOKENS = 10
PER_SECOND = 50.0
CAPACITY = SLOTS * PER_SECOND / TOKENS
"""Jobs a second."""

TENANTS = ("loud", "b", "c", "d", "e")
INTERACTIVE_PER_SECOND = 10


def test_overload_is_shared_fairly_and_urgent_jobs_do_not_feel_it(bed: Any, size: Sizes) -> None:
    bed.fleet.start(
        model=f"scripted:{PER_SECOND}", slots=SLOTS, in_flight=SLOTS, concurrency=2 * SLOTS
    )
    journal = bed.journal
    unloaded = _interactive(bed, size.overload_seconds / 3)
    alone = percentile(_waits(bed, unloaded), 0.95)
    # What the machine makes of a worker that is busy, without anybody having to wait for a place.
    busy = _interactive(bed, size.overload_seconds / 3, beside=int(CAPACITY / 2))
    beside = percentile(_waits(bed, busy), 0.95)
    journal.wait()

    # Enough of each tenant to be waiting all the time; one of them sends ten times as much.
    whose: dict[str, str] = {}
    share = int(CAPACITY * size.overload_seconds / len(TENANTS))
    for number in range(10 * share):
        for tenant in TENANTS:
            if tenant == "loud" or number < share:
                job = journal.submit_surely("faults.work", {"tokens": TOKENS}, tenant=tenant)
                whose[job.id] = tenant
        if number < share:
            job = journal.submit_surely("faults.work", {"tokens": TOKENS}, job_class="batch")
            whose[job.id] = "batch"
    began = time.time() + 1.0  # once the pipes are full
    loaded = _interactive(bed, size.overload_seconds)
    ended = time.time()
    overtaking = percentile(_waits(bed, loaded), 0.95)

    served = collections.Counter(
        whose.get(job_id, "interactive")
        for job_id, ends in list(journal.ends.items())
        for _, at in ends
        if began <= at <= ended
    )
    left = collections.Counter(whose[i] for i in whose if i not in journal.ends)
    journal.wait(job.id for job in loaded)
    for job_id in whose.keys() - journal.ends.keys():
        journal.client.cancel(job_id)
    journal.wait()
    tenants = [served[tenant] for tenant in TENANTS]
    mean = sum(tenants) / len(tenants)
    batch = served["batch"] / sum(served.values())
    tally = journal.check("overload, 3 classes, 5 tenants, one sending 10 x", bed.notes)
    tally.add(
        jobs_served=sum(served.values()),
        interactive_p95_ms=f"{1000 * overtaking:.0f}",
        unloaded_p95_ms=f"{1000 * alone:.0f}",
        half_loaded_p95_ms=f"{1000 * beside:.0f}",
        tenants="/".join(map(str, tenants)),
        batch=f"{100 * batch:.1f} %",
    )
    tally.tell()
    assert all(left[tenant] > 0 for tenant in (*TENANTS, "batch")), "somebody's work ran out"
    assert (tally.lost, tally.doubled) == (0, 0)
    assert overtaking <= 1.2 * max(alone, beside) + 0.05
    assert all(abs(count - mean) <= 0.1 * mean for count in tenants)
    assert batch >= 0.1


def _interactive(bed: Any, seconds: float, *, beside: int = 0) -> list[Job]:
    """Submit interactive jobs at an even pace, and so many standard ones a second beside them."""
    jobs = []
    started = time.monotonic()
    for number in range(int(seconds * INTERACTIVE_PER_SECOND)):
        wait_until(
            lambda due=started + number / INTERACTIVE_PER_SECOND: time.monotonic() >= due,
            every=0.01,
        )
        given = {"number": number, "tokens": TOKENS}
        jobs.append(bed.journal.submit_surely("faults.work", given, job_class="interactive"))
        for _ in range(beside // INTERACTIVE_PER_SECOND):
            bed.journal.submit_surely("faults.work", {"tokens": TOKENS})
    return jobs


def _waits(bed: Any, jobs: list[Job]) -> list[float]:
    """Seconds between a job's submission and its start, by the server's clock."""
    bed.journal.wait(job.id for job in jobs)
    records = bed.journal.read(job.id for job in jobs).values()
    return [float(row["started"]) - float(row["submitted"]) for row in records]
