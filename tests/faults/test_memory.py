"""A server whose memory is nearly used up: it says so at once, and never dies of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faultbed.broker import Broker
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow.errors import QueueFull

pytestmark = pytest.mark.timeout(1800)

FILLER = "x" * 30_000
REFUSAL = 0.05
REFUSALS = 100


@pytest.fixture
def broker(tmp_path: Path, size: Sizes) -> Iterator[Broker]:
    folder = tmp_path / "valkey"
    folder.mkdir()
    made = Broker(folder, "--maxmemory", f"{size.maxmemory_mb}mb")
    made.start()
    yield made
    made.close()


def test_a_full_server_refuses_at_once_and_is_emptied(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    (worker,) = bed.fleet.start()
    worker.freeze()
    for _ in range(2):  # and once more: what was refused once is not refused for ever
        refusals = _fill(bed)
        full = _used(broker)
        assert bed.queued() + len(bed.journal.submitted) > len(bed.journal.ends)
        worker.thaw()
        bed.journal.wait()
        wait_until(lambda: _used(broker) < 0.8, what="room in the server")
        worker.freeze()
    worker.thaw()
    assert bed.journal.submit("faults.work", {"tokens": 1}).wait(20).ok

    tally = bed.journal.check("memory at 80 % of maxmemory", bed.notes)
    pings = [_timed(broker.client.ping) for _ in range(100)]
    peak = broker.client.info("memory")["used_memory_peak"] / (size.maxmemory_mb << 20)
    waiting = bed.store.client.hgetall(bed.store.keys.depth)
    tally.add(
        refusals=len(refusals),
        slowest_refusal_ms=round(1000 * max(refusals)),
        used_when_full=f"{100 * full:.0f} %",
        peak=f"{100 * peak:.0f} %",
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert bed.journal.states() == {"done": tally.submitted}
    assert max(refusals) <= REFUSAL + 2 * max(pings)
    assert peak < 1
    assert waiting == {}
    assert "OOM" not in worker.output
    bed.finish()


def _fill(bed: Any) -> list[float]:
    """Submit until the server has refused many times. Returns the seconds that refusals took.

    It refuses by what it uses, its buffers included: now and then there is room once more.
    """
    taken: list[float] = []
    refusals: list[QueueFull] = []
    for number in range(100_000):
        started = time.monotonic()
        try:
            bed.journal.submit("faults.work", {"number": number, "filler": FILLER})
        except QueueFull as error:
            taken.append(time.monotonic() - started)
            refusals.append(error)
        if len(refusals) == REFUSALS:
            break
    assert len(refusals) == REFUSALS
    assert all("memory" in error.message and error.retry_after > 0 for error in refusals)
    return taken


def _timed(call: Callable[[], Any]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _used(broker: Broker) -> float:
    memory = broker.client.info("memory")
    return float(memory["used_memory"]) / float(memory["maxmemory"])
