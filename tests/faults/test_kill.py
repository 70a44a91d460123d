"""SIGKILL of random workers, under load: nothing is lost, and everything has one outcome."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

import pytest
from faultbed.notes import Note
from faultbed.sizes import Sizes
from faultbed.stock import VISIBILITY, Stock
from faultbed.waiting import percentile

pytestmark = pytest.mark.timeout(7200)

WORKERS = 4


def test_nothing_is_lost_when_random_workers_are_killed(bed: Any, size: Sizes) -> None:
    draw = random.Random(1)
    bed.fleet.start(WORKERS)
    bed.fleet.supervise()
    pace = size.kill_jobs / (size.kills * size.kill_every)
    feeding = threading.Thread(target=_feed, args=(bed, size.kill_jobs, pace, draw), daemon=True)
    feeding.start()
    killed: dict[int, float] = {}
    while len(killed) < size.kills:
        time.sleep(size.kill_every * draw.uniform(0.5, 1.5))
        # One that works: killing one that is still starting proves nothing.
        busy = [w for w in bed.fleet.workers if w.alive and w.pid in _ready(bed) - killed.keys()]
        if busy:
            victim = draw.choice(busy)
            killed[victim.pid] = time.time()
            bed.fleet.kill(victim)
    feeding.join()
    bed.journal.wait(seconds=20 * size.lease + 120)

    tally = bed.journal.check("SIGKILL of random workers", bed.notes)
    runs = bed.notes.runs()
    first, alone = _gaps(runs, killed)
    # What any job waits for its start here: little, unless the machine has too much to do.
    waits = [starts[0].time - bed.journal.submitted[job_id] for job_id, starts in runs.items()]
    bound = size.reclaim + percentile(waits, 0.99)
    states = bed.journal.states()
    tally.add(
        kills=len(killed),
        dead=states["dead"],
        run_again=len(first),
        claimed_again_p50=percentile(first, 0.5),
        claimed_again_p99=percentile(first, 0.99),
        bound=bound,
        run_alone=len(alone),
        run_alone_p99=percentile(alone, 0.99),
        lost_doorbells=bed.totals.get("lost_doorbells", 0),
    )
    tally.tell()
    assert (tally.submitted, tally.lost, tally.doubled) == (size.kill_jobs, 0, 0)
    assert tally.recovered > 0
    assert states["done"] + states["dead"] == size.kill_jobs
    assert percentile(first, 0.99) <= bound


def test_stock_celery_loses_some_of_them(stock: Stock, size: Sizes) -> None:
    """For comparison. How many it loses is a matter of luck, so nothing is asked of it."""
    draw = random.Random(1)
    stock.start(2)
    pace = size.stock_jobs / (size.stock_kills * size.kill_every)
    feeding = threading.Thread(target=_feed_stock, args=(stock, size.stock_jobs, pace, draw))
    feeding.start()
    kills = 0
    while kills < size.stock_kills:
        time.sleep(size.kill_every * draw.uniform(0.5, 1.5))
        ready = [w for w in stock.workers if "ready." in w.output]
        if ready:
            victim = draw.choice(ready)
            victim.kill()
            stock.replace(victim)
            kills += 1
    feeding.join()
    stock.settle(2 * VISIBILITY)
    tally = stock.check("SIGKILL of random workers", kills=kills)
    tally.tell()
    assert tally.recorded > 0.9 * tally.submitted


def _feed_stock(stock: Stock, jobs: int, pace: float, draw: random.Random) -> None:
    started = time.monotonic()
    for number in range(jobs):
        ahead = started + number / pace - time.monotonic()
        if ahead > 0.05:
            time.sleep(ahead)
        stock.submit(draw.randint(2, 20) / 100)


def _gaps(runs: dict[str, list[Note]], killed: dict[int, float]) -> tuple[list[float], list[float]]:
    """Seconds from a kill to the next start of each job: after its first crash, and later ones.

    Who crashed twice waits for a worker to be idle, so that it runs alone.
    """
    gaps: tuple[list[float], list[float]] = ([], [])
    for starts in runs.values():
        crashes = 0
        for earlier, later in itertools.pairwise(starts):
            if earlier.pid in killed:
                gaps[min(crashes, 1)].append(later.time - killed[earlier.pid])
                crashes += 1
    return gaps


def _feed(bed: Any, jobs: int, pace: float, draw: random.Random) -> None:
    started = time.monotonic()
    for number in range(jobs):
        ahead = started + number / pace - time.monotonic()
        if ahead > 0.05:
            time.sleep(ahead)
        bed.journal.submit_surely("faults.work", {"number": number, "tokens": draw.randint(2, 20)})


def _ready(bed: Any) -> set[int]:
    return {record.pid for record in bed.journal.client.transport.workers()}
