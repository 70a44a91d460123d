"""What is left in the server of a batch that has ended: its records, and they expire."""

from __future__ import annotations

from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.tally import Tally
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(7200)


def test_a_batch_leaves_nothing_that_stays(bed: Any, size: Sizes) -> None:
    bed.fleet.start(plugins="faults,text", slots=256, in_flight=512)
    client = bed.store.client
    rows = (f"row {number}" for number in range(size.leak_items))
    batch = bed.journal.client.submit_many("text.echo", rows)
    wait_until(lambda: batch.record.finished, 3600, what="the batch's end", every=0.2)
    assert batch.record.done == size.leak_items
    waiting = client.hgetall(bed.store.keys.depth)
    ended = bed.totals["ended_items"]
    tally = Tally(
        row="key leak, a batch",
        submitted=size.leak_items,
        recorded=ended,
        lost=size.leak_items - ended,
        doubled=client.hlen(bed.store.keys.results(batch.id)) - ended,
        recovered=0,
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert waiting == {}
    # The rest is what the fixture asserts at the end of every test: no key without a life.
