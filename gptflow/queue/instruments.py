"""Instruments: what an operator watches of a process, served over HTTP.

/metrics    for Prometheus
/livez      200 while the process should be left alone, 503 when it should be restarted
/readyz     200 while it takes jobs
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from gptflow.config import Settings
from gptflow.queue.overview import read_overview
from gptflow.queue.probes import Check, Probes, Vitals
from gptflow.queue.redis_store import RedisStore
from gptflow.queue.status_server import Response, StatusServer
from gptflow.queue.tallies import Tallies

logger = logging.getLogger(__name__)

RED = 2 / 3
"""Of the watchdog's time: `/livez` tells before the worker ends itself."""


class Instruments:
    """The HTTP server of a worker, from before its model is loaded until it has stopped.

    Args:
        store: of the queue whose metrics are shown.

    Raises:
        ConfigError: the port is not to be had.
    """

    def __init__(self, settings: Settings, store: RedisStore) -> None:
        # Only here: a worker without instruments needs none of it.
        from gptflow.queue import metrics

        assert settings.metrics_port is not None
        self._app = settings.app
        self._probes = Probes(RED * settings.watchdog)
        self._metrics = metrics
        self._exposition = metrics.Exposition()
        self._exposition.add(metrics.LedgerCollector(partial(read_overview, store)))
        self._server = StatusServer(
            settings.metrics_host,
            settings.metrics_port,
            {
                "/metrics": self._render,
                "/livez": lambda: _report(self._probes.live()),
                "/readyz": lambda: _report(self._probes.ready()),
            },
            quick=frozenset(("/livez", "/readyz")),
        )
        self._server.start()
        logger.info("Metrics and probes at %s", self._server.url)

    @classmethod
    def of(cls, settings: Settings, store: RedisStore) -> Instruments | None:
        """Those that the settings ask for."""
        return None if settings.metrics_port is None else cls(settings, store)

    @property
    def url(self) -> str:
        return self._server.url

    def attach(
        self, vitals: Vitals, describe: Callable[[], Mapping[str, Any]], tallies: Tallies
    ) -> None:
        """Show a worker whose model is loaded."""
        self._exposition.add(self._metrics.WorkerCollector(self._app, describe, tallies))
        self._probes.vitals = vitals

    def close(self) -> None:
        self._server.stop()

    def _render(self) -> Response:
        return Response(self._exposition.render(), self._metrics.CONTENT_TYPE)


def _report(checks: Sequence[Check]) -> Response:
    failed = [check.name for check in checks if not check.ok]
    body = {
        "ok": not failed,
        "failed": failed,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    status = HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK
    return Response(json.dumps(body).encode() + b"\n", status=status)
