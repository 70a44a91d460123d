"""Ten producers that send the same keys, over connections that break, and try again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faultbed.broker import Broker
from faultbed.proxy import Proxy
from faultbed.sizes import Sizes

from gptflow import config
from gptflow.client import Client
from gptflow.errors import BrokerUnavailable

pytestmark = pytest.mark.timeout(7200)


def test_a_key_is_one_job_however_often_it_is_sent(
    broker: Broker, make_bed: Callable[..., Any], size: Sizes
) -> None:
    bed = make_bed(broker.url)
    bed.fleet.start()
    proxy = Proxy(broker.port)
    settings = config.load(redis_url=proxy.url, app=bed.settings.app)
    sent = threading.Event()
    cuts = [0]
    errors = [0]
    calls = [0] * size.producers

    def produce(number: int) -> dict[str, str]:
        draw = random.Random(number)
        keys = [f"key-{n}" for n in range(size.keys)]
        draw.shuffle(keys)
        ids: dict[str, str] = {}
        with Client(settings=settings) as client:
            for key in keys:
                for _ in range(1 + (draw.random() < 0.1)):
                    ids.setdefault(key, _send(client, key))
                    calls[number] += 1
        return ids

    def _send(client: Client, key: str) -> str:
        while True:
            try:
                return client.submit("faults.work", {"tokens": 1}, key=key).id
            except BrokerUnavailable:
                errors[0] += 1

    def cut() -> None:
        while not sent.wait(0.2):
            cuts[0] += proxy.cut()

    cutting = threading.Thread(target=cut, daemon=True)
    cutting.start()
    with ThreadPoolExecutor(size.producers) as pool:
        found = list(pool.map(produce, range(size.producers)))
    sent.set()
    cutting.join()
    proxy.close()
    ids = {key: {each[key] for each in found} for key in found[0]}
    bed.journal.submitted |= {job_id: 0.0 for each in found for job_id in each.values()}
    bed.journal.wait(seconds=120)
    tally = bed.journal.check(f"{size.producers} producers, the same {size.keys} keys", bed.notes)
    jobs = bed.store.jobs(None, 10 * size.keys)
    tally.add(
        calls=sum(calls),
        connections_reset=cuts[0],
        calls_that_failed=errors[0],
        jobs=len(jobs),
        ends=sum(len(ends) for ends in bed.journal.ends.values()),
    )
    tally.tell()
    assert cuts[0] > size.producers
    assert all(len(same) == 1 for same in ids.values())
    assert (tally.submitted, tally.lost, tally.doubled) == (size.keys, 0, 0)
    assert len(jobs) == min(size.keys, 10_000)
    assert bed.totals["ended:done"] == size.keys
    bed.finish(broken=True)
