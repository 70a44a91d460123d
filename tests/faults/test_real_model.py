"""The real model once: workers that decode with it are killed, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]

TOKENS = 12


def test_what_a_real_engine_ran_is_run_again(bed: Any, size: Sizes) -> None:
    given = {"model": "smollm2-135m-instruct", "slots": 8, "in_flight": 16, "lease": 2 * size.lease}
    victim, other = bed.fleet.start(2, **given)
    jobs = [
        bed.journal.submit_surely("faults.work", {"number": n, "tokens": TOKENS}, seed=n)
        for n in range(size.real_jobs)
    ]
    wait_until(lambda: _ends(bed, victim.pid) > 2 and _open(bed, victim.pid) > 2, 120)
    bed.fleet.kill(victim)
    bed.fleet.workers.remove(victim)
    bed.journal.wait(seconds=600)
    tally = bed.journal.check("SIGKILL of a worker with the real model", bed.notes)
    texts = [bed.journal.client.job(job.id).result(5)["text"] for job in jobs]
    tally.add(kills=1, with_text=sum(bool(text.strip()) for text in texts))
    tally.tell()
    assert (tally.lost, tally.doubled) == (0, 0)
    assert tally.recovered > 0
    assert bed.journal.states() == {"done": len(jobs)}
    assert other.alive


def _ends(bed: Any, pid: int) -> int:
    return sum(note.kind == "end" and note.pid == pid for note in bed.notes.read())


def _open(bed: Any, pid: int) -> int:
    """Jobs that a process runs now."""
    return sum(
        (note.kind == "start") - (note.kind != "start")
        for note in bed.notes.read()
        if note.pid == pid
    )
