"""Streams whose readers lose them again and again, and whose worker dies midway."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faultbed.broker import Broker
from faultbed.proxy import Proxy
from faultbed.sizes import Sizes
from faultbed.waiting import wait_until

from gptflow import config
from gptflow.client import Client
from gptflow.errors import BrokerUnavailable

pytestmark = pytest.mark.timeout(3600)

CUTS = 5
TOKENS = 100


class Reader:
    """Follows one stream, drops it five times, and goes on where it was."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.text = ""
        self.cuts = 0
        self.resets = 0
        self._client = client
        self._job_id = job_id
        self._draw = random.Random(job_id)
        self._place: str | None = None

    def read(self) -> Reader:
        while not self._read_some():
            self.cuts += 1
        return self

    def _read_some(self) -> bool:
        """Read until the end (True) or the next cut."""
        left = self._draw.randint(3, 15) if self.cuts < CUTS else 10 * TOKENS
        try:
            for event in self._client.job(self._job_id).events(self._place, timeout=90):
                self._place = event.id
                left -= 1
                if event.kind == "delta":
                    self.text += event.text
                elif event.kind == "reset":
                    self.text = ""
                    self.resets += 1
                else:
                    return True
                if left <= 0:
                    return False
        except BrokerUnavailable:
            time.sleep(0.05)  # as whoever reads it would
            return False
        return False


def test_text_that_was_cut_to_pieces_is_the_results_text(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    proxy = Proxy(broker.port)
    # A worker's text tells it from another's, so that a mixture of two would be seen.
    victim, _ = bed.fleet.start(2, model="scripted:25", in_flight=size.streams, slots=size.streams)
    jobs = [
        bed.journal.submit_surely(
            "faults.work", {"number": n, "tokens": TOKENS}, stream=True, job_class="interactive"
        )
        for n in range(size.streams)
    ]
    settings = config.load(redis_url=proxy.url, app=bed.settings.app)
    with Client(settings=settings) as client, ThreadPoolExecutor(size.streams) as pool:
        readers = [Reader(client, job.id) for job in jobs]
        futures = [pool.submit(reader.read) for reader in readers]
        half = TOKENS // 2
        wait_until(
            lambda: sum(len(reader.text.split()) for reader in readers) > half * len(readers),
            60,
            what="half of the text",
        )
        proxy.cut()
        bed.fleet.kill(victim)
        for future in futures:
            future.result(120)
    proxy.close()
    bed.journal.wait()
    records = bed.journal.read(bed.journal.submitted)
    results = {job.id: bed.journal.client.job(job.id).result(5)["text"] for job in jobs}
    equal = sum(r.text == results[job.id] for r, job in zip(readers, jobs, strict=True))
    tally = bed.journal.check(f"{size.streams} streams, cut {CUTS} times each", bed.notes)
    tally.add(
        rebuilt=equal,
        cuts=sum(reader.cuts for reader in readers),
        resets=sum(reader.resets for reader in readers),
    )
    tally.tell()
    assert equal == size.streams
    assert (tally.lost, tally.doubled) == (0, 0)
    assert min(reader.cuts for reader in readers) >= CUTS
    assert tally.recovered > 0, "the worker that was killed ran nothing"
    assert all(row["state"] == "done" for row in records.values())
    assert all(len(text.split()) == TOKENS for text in results.values())
    bed.finish(broken=True)
