"""A worker that is frozen, then killed, with messages in its hands that it has not seen yet.

The window in which stock Celery loses messages: `BRPOP` has taken one out of the list, and the
worker has not written down that it holds it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow.queue.redis_ledger import DOORBELL_SECONDS, RedisLedger

pytestmark = pytest.mark.timeout(7200)

WAVE = 5
"""Workers that are frozen at once."""


def test_messages_in_the_hands_of_the_dead_are_recovered(bed: Any, size: Sizes) -> None:
    store, journal = bed.store, bed.journal
    ledger = RedisLedger(store, lease=size.lease, dead_ttl=60)
    popped: set[str] = set()
    waves = 0
    while len(popped) < size.pops:
        waves += 1
        assert waves <= size.pops, "the workers never took what was rung for"
        victims = bed.fleet.start(WAVE)
        for victim in victims:
            victim.freeze()
        jobs = [journal.submit_surely("faults.work", {"number": n}) for n in range(WAVE)]
        # As another worker's feeder does, at the moment at which these are waiting in BRPOP. The
        # doorbells of earlier waves count as room that is taken.
        out = int(store.client.hget(f"{store.keys.prefix}depth", "@fed") or 0)
        fed = ledger.feed(out + WAVE, 0)
        assert fed.jobs == WAVE
        left = _in_lists(bed)
        records = journal.read(job.id for job in jobs)
        assert {row["state"] for row in records.values()} == {"queued"}
        for victim in victims:
            bed.fleet.kill(victim)
        popped |= {job.id for job in jobs} - left
    ledger.close()
    killed = time.monotonic()
    bed.fleet.start()
    journal.wait(popped, 2 * DOORBELL_SECONDS + 30)
    recovery = time.monotonic() - killed
    journal.wait()

    tally = journal.check("frozen, then killed", bed.notes)
    tally.recovered = len(popped & journal.ends.keys())
    tally.add(popped_and_lost=len(popped), waves=waves, all_recovered_after=recovery)
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert tally.recovered == len(popped) >= size.pops
    assert bed.totals["lost_doorbells"] >= len(popped)
    wait_until(lambda: not store.client.exists(f"{store.keys.prefix}fed"), what="no doorbell out")


def _in_lists(bed: Any) -> set[str]:
    """The jobs whose doorbells are in Celery's lists."""
    messages = bed.store.client.lrange(bed.store.keys.queue("standard"), 0, -1)
    return {json.loads(message)["headers"]["id"] for message in messages}
