"""SIGTERM: a worker ends in its grace, and gives back what it cannot finish."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(7200)

FULL = 256
MARGIN = 1.5
"""Seconds that handing back and leaving may take after the grace."""


def test_a_worker_with_256_in_flight_ends_in_its_grace(bed: Any, size: Sizes) -> None:
    # Half of them end within the grace, the others long after it.
    (worker,) = bed.fleet.start(concurrency=FULL, slots=FULL, in_flight=FULL + FULL // 7)
    tokens = [int(size.grace * 50) if n % 2 else int(size.grace * 1000) for n in range(FULL)]
    jobs = [bed.journal.submit("faults.work", {"tokens": count}) for count in tokens]
    wait_until(lambda: len(bed.notes.runs()) >= FULL, what="all of them running")
    late = [bed.journal.submit("faults.work", {"tokens": 1}) for _ in range(20)]
    started = time.monotonic()
    at = time.time()
    assert worker.terminate(size.grace + 30) == 0
    took = time.monotonic() - started
    bed.fleet.workers.remove(worker)

    notes = bed.notes.read()
    ended = {note.job_id for note in notes if note.kind == "end"}
    records = bed.journal.read(job.id for job in jobs)
    done = {job_id for job_id, row in records.items() if row["state"] == "done"}
    back = {job_id for job_id, row in records.items() if row["state"] == "queued"}
    assert done == ended
    assert done | back == set(records)
    assert all(int(records[job_id]["attempt"]) == 0 for job_id in back), "no attempt is charged"
    assert all(int(records[job_id]["crashes"]) == 0 for job_id in back)
    late_starts = [n for n in notes if n.kind == "start" and n.time > at + 1]
    # Then others finish what was handed back; that takes too long here, so it is cancelled.
    for job_id in back:
        bed.journal.client.cancel(job_id)
    bed.fleet.start()
    bed.journal.wait(job.id for job in late)
    bed.journal.wait()
    tally = bed.journal.check("TERM with 256 in flight", bed.notes)
    tally.add(
        finished=len(done),
        handed_back=len(back),
        exit_after=took,
        grace=float(size.grace),
        started_1_s_after_TERM=len(late_starts),
        run_again_after_end=len(bed.notes.rerun_after_end()),
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert len(done) >= FULL // 2 - 1
    assert len(back) >= FULL // 2 - 1
    assert took <= size.grace + MARGIN
    assert not late_starts
    assert not bed.notes.rerun_after_end()


def test_rolling_restarts_lose_nothing_and_run_nothing_twice(
    bed: Any, size: Sizes, eventually: Callable[..., None]
) -> None:
    draw = random.Random(2)
    bed.fleet.start(2)
    codes, times = [], []
    for number in range(size.rolling):
        # The next one is started first, as a rolling update does.
        old = bed.fleet.workers[0]
        bed.fleet.start()
        for _ in range(100):
            bed.journal.submit("faults.work", {"tokens": draw.randint(1, int(size.grace * 120))})
        before = len(bed.notes.read())
        eventually(lambda seen=before: len(bed.notes.read()) > seen)
        started = time.monotonic()
        codes.append(old.terminate(size.grace + 30))
        times.append(time.monotonic() - started)
        assert codes[-1] == 0, f"restart {number}: {old.output}"
        bed.fleet.workers.remove(old)
    bed.journal.wait(seconds=120)
    tally = bed.journal.check("rolling restarts", bed.notes)
    again = bed.notes.rerun_after_end()
    tally.add(
        restarts=size.rolling,
        exit_0=codes.count(0),
        slowest_exit=max(times),
        handed_back=bed.totals.get("handed_back", 0),
        run_again_after_end=len(again),
    )
    tally.tell()
    assert (tally.lost, tally.doubled, len(again)) == (0, 0, 0)
    assert bed.totals.get("handed_back", 0) > 0, "nothing was too long for the grace"
    assert bed.journal.states() == {"done": 100 * size.rolling}
    assert max(times) <= size.grace + MARGIN
    crashes = bed.journal.read(bed.journal.submitted).values()
    assert not any(int(row["crashes"]) for row in crashes), "a drain is no crash"
