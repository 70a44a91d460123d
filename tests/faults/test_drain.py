"""SIGTERM: a worker ends in its grace, and gives back what it cannot finish."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from faultbed.broker import Broker
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(7200)

FULL = 256

SILENT = 30.0
"""Seconds after the grace where the server does not answer: last tries, each with time-outs."""


def margin(bed: Any) -> float:
    """Seconds that handing back and leaving may take after the grace.

    A second, and what leaving takes a worker that has nothing to do, half as much again: that is
    long on a machine that is busy, or measures what its tests cover.
    """
    (idle,) = bed.fleet.start()
    started = time.monotonic()
    assert idle.terminate() == 0
    bed.fleet.workers.remove(idle)
    return 1.0 + 1.5 * (time.monotonic() - started)


def test_a_worker_with_256_in_flight_ends_in_its_grace(bed: Any, size: Sizes) -> None:
    allowed = margin(bed)
    # Half of them end within the grace, the others long after it.
    (worker,) = bed.fleet.start(concurrency=FULL, slots=FULL, in_flight=FULL + FULL // 7)
    tokens = [int(size.grace * 50) if n % 2 else int(size.grace * 1000) for n in range(FULL)]
    jobs = [bed.journal.submit_surely("faults.work", {"tokens": count}) for count in tokens]
    wait_until(lambda: len(bed.notes.runs()) >= FULL, what="all of them running")
    late = [bed.journal.submit_surely("faults.work", {"tokens": 1}) for _ in range(20)]
    started = time.monotonic()
    at = time.time()
    assert worker.terminate(size.grace + 30) == 0
    took = time.monotonic() - started
    bed.fleet.workers.remove(worker)

    notes = bed.notes.read()
    ended = {note.job_id for note in notes if note.kind == "end"} - {job.id for job in late}
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
        margin=allowed,
        started_1_s_after_TERM=len(late_starts),
        run_again_after_end=len(bed.notes.rerun_after_end()),
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert len(done) >= FULL // 2 - 1
    assert len(back) >= FULL // 2 - 1
    assert took <= size.grace + allowed
    assert not late_starts
    assert not bed.notes.rerun_after_end()


def test_a_worker_ends_although_its_server_does_not_answer(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    (worker,) = bed.fleet.start()
    tokens = [int(size.grace * (50 if n % 2 else 1000)) for n in range(64)]
    for count in tokens:
        bed.journal.submit_surely("faults.work", {"tokens": count}, job_class="interactive")
    wait_until(lambda: len(bed.notes.runs()) == len(tokens), 60, what="all of them running")
    broker.freeze()
    started = time.monotonic()
    code = worker.terminate(size.grace + 120)
    took = time.monotonic() - started
    bed.fleet.workers.remove(worker)
    broker.thaw()
    # Nobody could be told, so the leases tell; what would take too long here is cancelled.
    bed.fleet.start()
    wait_until(
        lambda: sum(len(runs) > 1 for runs in bed.notes.runs().values()) >= len(tokens) // 2,
        size.lease + 30,
        what="the rest taken over",
    )
    for job_id, count in zip(list(bed.journal.submitted), tokens, strict=True):
        if count > size.grace * 50:
            bed.journal.client.cancel(job_id)
    bed.journal.wait()
    tally = bed.journal.check("TERM while Valkey is frozen", bed.notes)
    tally.add(exit_code=code, exit_after=took, bound=size.grace + SILENT)
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert code == 0, worker.output
    assert took <= size.grace + SILENT
    bed.finish(broken=True)


def test_rolling_restarts_lose_nothing_and_run_nothing_twice(
    bed: Any, size: Sizes, eventually: Callable[..., None]
) -> None:
    draw = random.Random(2)
    allowed = margin(bed)
    bed.fleet.start(2)
    codes, times = [], []
    for number in range(size.rolling):
        # The next one is started first, as a rolling update does.
        old = bed.fleet.workers[0]
        bed.fleet.start()
        for _ in range(100):
            bed.journal.submit_surely(
                "faults.work", {"tokens": draw.randint(1, int(size.grace * 120))}
            )
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
        margin=allowed,
        handed_back=bed.totals.get("handed_back", 0),
        run_again_after_end=len(again),
    )
    tally.tell()
    assert (tally.lost, tally.doubled, len(again)) == (0, 0, 0)
    assert bed.totals.get("handed_back", 0) > 0, "nothing was too long for the grace"
    assert bed.journal.states() == {"done": 100 * size.rolling}
    assert max(times) <= size.grace + allowed
    crashes = bed.journal.read(bed.journal.submitted).values()
    assert not any(int(row["crashes"]) for row in crashes), "a drain is no crash"
