"""What is left in the server of a batch that has ended: its records, and they expire."""

from __future__ import annotations

from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(7200)


def test_a_batch_leaves_nothing_that_stays(bed: Any, size: Sizes) -> None:
    bed.fleet.start(plugins="faults,text", slots=256, in_flight=512)
    client = bed.store.client
    rows = (f"row {number}" for number in range(size.leak_items))
    batch = bed.journal.client.submit_many("text.echo", rows)
    wait_until(lambda: batch.record.finished, 3600, what="the batch's end", every=0.2)
    assert batch.record.done == size.leak_items
    totals = bed.totals
    waiting = client.hgetall(bed.store.keys.depth)
    line = f"key leak: items {size.leak_items}, ended {totals['ended_items']}, waiting {waiting}"
    print(line)
    assert waiting == {}
    assert totals["ended_items"] == size.leak_items
    # The rest is what the fixture asserts at the end of every test: no key without a life.
