"""A plain Celery application, for comparison: one task, acknowledged late, on the same server."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

app = Celery("stock", broker=os.environ.get("STOCK_BROKER", ""), set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "global_keyprefix": "stock:",
        "visibility_timeout": int(os.environ.get("STOCK_VISIBILITY", 3600)),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)
_client = redis.Redis.from_url(os.environ.get("STOCK_REDIS", "redis://"), decode_responses=True)


@app.task(name="stock.work")
def work(number: int, seconds: float) -> None:
    time.sleep(seconds)
    _client.hincrby("stock:done", str(number), 1)
