"""Stock Celery under the same faults: what its own redelivery makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import redis

from faultbed.fleet import Process
from faultbed.tally import Tally
from faultbed.waiting import wait_until
from gptflow.queue.connection import for_kombu

VISIBILITY = 5
"""Seconds after which an unacknowledged message goes to another worker; an hour by default."""

_THREADS = 32


class Stock:
    """A plain Celery application and its workers, on a pool of threads.

    Args:
        url: of the server.
        environment: with the folder of `stock_celery` in PYTHONPATH.
    """

    def __init__(self, url: str, environment: dict[str, str], folder: Path) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.workers: list[Process] = []
        self.submitted = 0
        self._given = {"STOCK_BROKER": for_kombu(url), "STOCK_REDIS": url}
        self._given["STOCK_VISIBILITY"] = str(VISIBILITY)
        self._environment = environment | self._given
        self._folder = folder
        self._app: Any = None

    def start(self, count: int) -> None:
        fresh = [self.launch() for _ in range(count)]
        self.workers += fresh
        for worker in fresh:
            wait_until(lambda log=worker: "ready." in log.output, 60, what="a stock worker")

    def launch(self) -> Process:
        log = self._folder / f"stock-{len(list(self._folder.iterdir()))}.log"
        command = [sys.executable, "-m", "celery", "-A", "stock_celery", "worker", "-P", "threads"]
        options = ["-c", str(_THREADS), "-l", "INFO", "-n", f"{log.stem}@here"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return Process(command + options + quiet, self._environment, log)

    def replace(self, worker: Process) -> None:
        self.workers[self.workers.index(worker)] = self.launch()

    def submit(self, seconds: float) -> None:
        if self._app is None:
            self._app = self._make_app()
        self._app.send_task("stock.work", [self.submitted, seconds])
        self.submitted += 1

    def _make_app(self) -> Any:
        from celery import Celery

        app = Celery("stock", broker=self._given["STOCK_BROKER"], set_as_current=False)
        app.conf.broker_transport_options = {"global_keyprefix": "stock:"}
        return app

    def settle(self, quiet: float) -> None:
        """Wait until all have run, or nothing more has for some seconds."""
        seen, still = -1, 0.0

        def settled() -> bool:
            nonlocal seen, still
            done = self.client.hlen("stock:done")
            still = 0.0 if done != seen else still + 0.1
            seen = done
            return done == self.submitted or still > quiet

        wait_until(settled, 600, every=0.1)

    def check(self, row: str, **more: Any) -> Tally:
        done = {int(k): int(v) for k, v in self.client.hgetall("stock:done").items()}
        tally = Tally(
            row=f"{row}, STOCK CELERY (acks_late, for comparison)",
            submitted=self.submitted,
            recorded=len(done),
            lost=self.submitted - len(done),
            doubled=sum(count > 1 for count in done.values()),
            recovered=0,
        )
        tally.add(**more)
        return tally

    def close(self) -> None:
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        if self._app is not None:
            self._app.close()
        self.client.close()
