"""`gptflow bench queue`, small."""

from __future__ import annotations

from gptflow import config
from gptflow.queue import bench
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.redis_store import RedisStore


def test_the_queue_is_measured_bare_and_with_an_engine(server: EmbeddedServer) -> None:
    settings = config.load(redis_url=server.url, model="scripted")
    store = RedisStore(server.url, "x", 60)
    before = set(store.client.scan_iter("*bench*"))
    row = bench.measure(settings, jobs=100, items=640, requests=4, tokens=4)
    assert {"jobs_s", "items_s", "enqueue_p99_ms", "round_trips_per_job", "share"} <= row.keys()
    assert all(value > 0 for value in row.values() if value is not None)
    assert row["same_tokens"] == 1
    assert set(store.client.scan_iter("*bench*")) == before
    store.close()
