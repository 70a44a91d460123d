"""The server dies, hangs, or cannot be reached."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from faultbed.broker import Broker
from faultbed.proxy import Proxy
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow.errors import BrokerUnavailable

pytestmark = pytest.mark.timeout(7200)

RESUMED = 12.0
CONSUMING = 5.0
PACE = 100


class Load:
    """Submits jobs in a thread until it is stopped; what was not acknowledged is sent again."""

    def __init__(self, bed: Any, tokens: int) -> None:
        self.refused = 0
        self._bed = bed
        self._tokens = tokens
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopping.wait(1 / PACE):
            # The same key again is the same job, whether or not the server took the first.
            given = {"number": number, "tokens": self._tokens}
            try:
                self._bed.journal.submit("faults.work", given, key=f"load-{number}")
            except BrokerUnavailable:
                self.refused += 1
                continue
            number += 1


def test_no_acknowledged_job_is_lost_when_the_server_is_killed(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    bed.fleet.start(2)
    pauses = []
    with Load(bed, tokens=10) as load:
        for _ in range(size.server_kills):
            count = len(bed.journal.ends)
            bed.journal.until(lambda seen=count: len(bed.journal.ends) > seen + PACE, 30)
            broker.kill()
            _pass(0.5)
            broker.start()
            back = time.time()
            pauses.append(_first_start(bed, back) - back)
    bed.journal.wait()
    tally = bed.journal.check("SIGKILL of Valkey, AOF everysec", bed.notes)
    tally.add(
        kills=size.server_kills,
        refused_meanwhile=load.refused,
        consuming_again_slowest=max(pauses),
        bound=CONSUMING,
        run_twice=sum(len(runs) > 1 for runs in bed.notes.runs().values()),
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert max(pauses) <= CONSUMING
    assert bed.journal.states() == {"done": tally.submitted}
    assert _crashes(bed) == 0, "no worker has died"
    bed.finish(broken=True)


def test_a_frozen_server_holds_nothing_up_once_it_goes_on(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    bed.fleet.start(2)
    with Load(bed, tokens=20):
        bed.journal.until(lambda: len(bed.journal.ends) > PACE, 30)
        broker.freeze()
        _pass(size.server_frozen)
        broker.thaw()
        back = time.time()
        pause = _first_start(bed, back) - back
        submitted = len(bed.journal.submitted)
        wait_until(lambda: len(bed.journal.submitted) > submitted + 10, 30, what="more jobs")
    bed.journal.wait()
    tally = bed.journal.check(f"Valkey frozen {size.server_frozen:g} s", bed.notes)
    tally.add(consuming_again=pause, bound=RESUMED, crashes_charged=_crashes(bed))
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert pause <= RESUMED
    assert bed.journal.states() == {"done": tally.submitted}
    assert all(worker.alive for worker in bed.fleet.workers)
    assert _crashes(bed) == 0, "no worker has died"
    bed.finish(broken=True)


def test_a_dead_link_to_all_workers_holds_nothing_up_once_it_is_back(
    broker: Broker, proxy: Proxy, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    bed.fleet.start(2, redis_url=proxy.url)
    with Load(bed, tokens=20):
        bed.journal.until(lambda: len(bed.journal.ends) > PACE, 30)
        proxy.freeze()
        _pass(size.cut)
        proxy.restore()
        back = time.time()
        pause = _first_start(bed, back) - back
    bed.journal.wait()
    tally = bed.journal.check(f"link of all workers dead {size.cut:g} s", bed.notes)
    tally.add(consuming_again=pause, bound=RESUMED, crashes_charged=_crashes(bed))
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert pause <= RESUMED
    assert bed.journal.states() == {"done": tally.submitted}
    assert all(worker.alive for worker in bed.fleet.workers)
    assert _crashes(bed) == 0, "no worker has died"
    bed.finish(broken=True)


def test_a_worker_whose_link_is_dead_gives_way_to_another(
    broker: Broker, proxy: Proxy, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    (cut,) = bed.fleet.start(redis_url=proxy.url)
    jobs = [bed.journal.submit("faults.work", {"tokens": int(size.cut * 70)}) for _ in range(32)]
    wait_until(lambda: len(bed.notes.runs()) == len(jobs), what="all of them running")
    proxy.freeze()
    dead = time.monotonic()
    bed.fleet.start()
    # The other one runs what the lease has freed, while the first goes on in the dark.
    wait_until(
        lambda: sum(len(r) > 1 for r in bed.notes.runs().values()) == len(jobs),
        size.lease + 15,
        what="all of them taken over",
    )
    _pass(size.cut - (time.monotonic() - dead))
    proxy.restore()
    bed.journal.wait(seconds=size.cut + 60)
    tally = bed.journal.check(f"link of one worker dead {size.cut:g} s", bed.notes)
    records = bed.journal.read(bed.journal.submitted)
    stale = [row for row in records.values() if f'"pid":{cut.pid}' in row["result"]]
    wait_until(lambda: _takes_jobs(bed, cut.pid), 30, what="work of the worker that was cut off")
    tally.add(stale_results_recorded=len(stale))
    tally.tell()
    assert (tally.lost, tally.doubled, tally.recovered) == (0, 0, len(jobs))
    assert stale == []
    assert cut.alive
    bed.finish(broken=True)


def test_connections_that_are_cut_again_and_again_double_nothing(
    broker: Broker, proxy: Proxy, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    bed.fleet.start(2, redis_url=proxy.url)
    cuts = 0
    with Load(bed, tokens=10):
        for _ in range(20):
            count = len(bed.journal.ends)
            bed.journal.until(lambda seen=count: len(bed.journal.ends) > seen + PACE // 5, 30)
            cuts += proxy.cut()
    bed.journal.wait()
    tally = bed.journal.check("connections of all workers reset 20 times", bed.notes)
    tally.add(connections_reset=cuts, crashes_charged=_crashes(bed))
    tally.tell()
    assert cuts > 20
    assert (tally.lost, tally.doubled) == (0, 0)
    assert bed.journal.states() == {"done": tally.submitted}
    assert _crashes(bed) == 0, "no worker has died"
    bed.finish(broken=True)


def _pass(seconds: float) -> None:
    """Let time pass: it is the fault itself that takes it."""
    time.sleep(max(0.0, seconds))


def _first_start(bed: Any, moment: float) -> float:
    """When the first job after a moment was started by a worker."""

    def starts() -> list[float]:
        return [n.time for n in bed.notes.read() if n.kind == "start" and n.time > moment]

    wait_until(starts, 60, what="a job's start")
    return min(starts())


def _crashes(bed: Any) -> int:
    records = bed.journal.read(bed.journal.submitted).values()
    return sum(int(row["crashes"]) for row in records)


def _takes_jobs(bed: Any, pid: int) -> bool:
    with contextlib.suppress(BrokerUnavailable):
        jobs = [bed.journal.submit("faults.work", {}) for _ in range(5)]
        return any(job.wait(20).output["pid"] == pid for job in jobs)
    return False
