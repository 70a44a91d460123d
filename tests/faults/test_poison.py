"""A job that kills the process that runs it, among others that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = pytest.mark.timeout(1800)

OTHERS = 63


def test_a_poison_job_is_the_only_one_to_die_of_it(bed: Any, size: Sizes) -> None:
    bed.fleet.start(concurrency=64, slots=64, in_flight=80)
    bed.fleet.supervise()
    journal = bed.journal
    # All of them are in flight when it strikes.
    others = [
        journal.submit_surely("faults.poison", {"number": n, "tokens": 30}) for n in range(OTHERS)
    ]
    wait_until(lambda: len(bed.notes.runs()) == OTHERS, what="the others running")
    poison = journal.submit_surely("faults.poison", {"number": -1})
    journal.wait(seconds=6 * size.lease + 120)

    tally = journal.check("poison among 63", bed.notes)
    records = journal.read(journal.submitted)
    runs = bed.notes.runs()
    dead = bed.store.dead(10)
    tally.add(
        worker_deaths=bed.fleet.deaths,
        dead_letters=len(dead),
        innocents_done=sum(records[job.id]["state"] == "done" for job in others),
        runs_of_poison=len(runs[poison.id]),
        most_crashes_of_others=max(int(records[job.id]["crashes"]) for job in others),
    )
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert [record.id for record in dead] == [poison.id]
    assert all(records[job.id]["state"] == "done" for job in others)
    assert bed.fleet.deaths <= 3
    error = json.loads(records[poison.id]["result"])["error"]
    assert error["code"] == "GF505"
    assert "Job" in bed.store.last_words(poison.id)


def test_a_poison_row_of_a_batch_leaves_the_other_rows_done(bed: Any, size: Sizes) -> None:
    bed.fleet.start()
    bed.fleet.supervise()
    rows = [{"number": -1 if n == 17 else n, "tokens": 2} for n in range(OTHERS + 1)]
    batch = bed.journal.client.submit_many("faults.poison", rows)
    results = batch.results(6 * size.lease + 120)
    states = [result.state for result in results]
    done = states.count("done")
    print(f"poison row of a batch: rows {len(rows)}, done {done}, deaths {bed.fleet.deaths}")
    assert states[17] != "done"
    assert results[17].error is not None
    assert results[17].error.code == "GF505"
    assert done == OTHERS
    assert bed.fleet.deaths <= 3
