"""Beats that are killed again and again: each fire is one job, and none is missed."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from faultbed.fleet import Process
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow.schedule import Fire

pytestmark = pytest.mark.timeout(1800)

BEATS = 3
NAME = "faults.tick"


def test_each_fire_is_sent_once_whoever_is_killed(bed: Any, size: Sizes) -> None:
    bed.fleet.start()
    beats = [bed.fleet.launch("gptflow_workers.beat") for _ in range(BEATS)]
    try:
        for beat in beats:
            wait_until(lambda beat=beat: "Ready: " in beat.output, what="a beat")
        for _ in range(size.beat_kills):
            _await_fires(bed, 1)
            until = time.monotonic() + size.beat_kill_every
            wait_until(lambda until=until: time.monotonic() > until)
            victim = max(beats, key=_newest)
            victim.kill()
            beats[beats.index(victim)] = bed.fleet.launch("gptflow_workers.beat")
        _await_fires(bed, 2)
        assert all(beat.alive for beat in beats)
    finally:
        for beat in beats:
            beat.kill()
    journal = bed.journal
    fires = _fires(bed)
    app = bed.settings.app
    jobs = {Fire(NAME, datetime.fromtimestamp(at, UTC)).job_id(app) for at in fires}
    journal.submitted |= dict.fromkeys(jobs, 0.0)
    journal.wait()
    expected = list(range(fires[0], fires[-1] + 1))
    tally = journal.check(f"{BEATS} beats, the leader killed {size.beat_kills} times", bed.notes)
    tally.add(
        fires=len(fires),
        missed=len(set(expected) - set(fires)),
        sent_twice=len(fires) - len(set(fires)),
        runs=sum(len(runs) for runs in bed.notes.runs().values()),
    )
    tally.tell()
    assert fires == expected
    assert len(fires) >= size.beat_kills * size.beat_kill_every
    assert (tally.lost, tally.doubled, tally.recovered) == (0, 0, 0)
    assert set(bed.notes.runs()) == jobs, "a fire that is none of the schedule's has run"


def _fires(bed: Any) -> list[int]:
    """The seconds since 1970 of all fires, one for each job that there is."""
    store = bed.store
    found = []
    for job in store.jobs(None, 10_000):
        key = store.client.hget(store.keys.job(job.id), "idem")
        if match := re.search(rf"schedule:{re.escape(NAME)}:(\S+)", key or ""):
            found.append(int(datetime.fromisoformat(match[1]).timestamp()))
    return sorted(found)


def _await_fires(bed: Any, count: int) -> None:
    until = len(_fires(bed)) + count
    wait_until(lambda: len(_fires(bed)) >= until, what="a fire", every=0.1)


def _newest(beat: Process) -> str:
    """Its newest fire: whoever has sent the newest of all leads, if anybody does."""
    return max(re.findall(r"fire (\S+) is job", beat.output), default="")
