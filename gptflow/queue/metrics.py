"""Metrics: what a process shows to Prometheus, read at the moment it asks."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from gptflow import __version__
from gptflow.errors import BrokerUnavailable
from gptflow.queue.catalogue import ALL
from gptflow.queue.overview import Overview
from gptflow.queue.tallies import Tallies

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FRESH = 1.0
"""Seconds for which what the ledger said is good."""

_TOKENS = {"prompt": "tokens_in", "prompt_cached": "cached_tokens", "output": "tokens_out"}

Samples = Iterable[tuple[tuple[str, ...], Any]]


class Exposition:
    """A process's metrics as text."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def add(self, collector: Any) -> None:
        self._registry.register(collector)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class LedgerCollector:
    """The whole queue's metrics. However often it is asked, the server is once a second.

    Args:
        read: asks the server.
    """

    def __init__(self, read: Callable[[], Overview]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._last: Overview | None = None

    def describe(self) -> Iterator[Family]:
        """Nothing: the registry would read the server to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        overview = self._overview()
        yield _gauge("gptflow_ledger_up", overview is not None)
        if overview is not None:
            yield from _ledger_families(overview)

    def _overview(self) -> Overview | None:
        with self._lock:
            if time.monotonic() - self._at > _FRESH:
                try:
                    self._last = self._read()
                except BrokerUnavailable as error:
                    logger.debug("No metrics of the ledger: %s", error.message)
                    self._last = None
                self._at = time.monotonic()
            return self._last


def _ledger_families(seen: Overview) -> Iterator[Family]:
    totals = seen.totals
    yield _gauge("gptflow_workers", len(seen.workers))
    yield _family("gptflow_queue_depth", _by_name(seen.depth))
    yield _family("gptflow_queue_oldest_age_seconds", _by_name(seen.oldest))
    yield _gauge("gptflow_queue_backlog_seconds", seen.backlog)
    yield _gauge("gptflow_queue_items_per_second", seen.pace)
    states = {
        "running": seen.running,
        "delayed": seen.delayed,
        "suspect": seen.suspects,
        "rung": seen.rung,
    }
    yield _family("gptflow_queue_jobs", _by_name(states))
    for name, prefix in (("accepted", "accepted:"), ("refused", "refused:"), ("ended", "ended:")):
        found = {key.removeprefix(prefix): n for key, n in totals.items() if key.startswith(prefix)}
        yield _family(f"gptflow_queue_{name}_total", _by_name(found))
    for name, key in (
        ("gptflow_queue_ended_items_total", "ended_items"),
        ("gptflow_queue_retried_total", "retried"),
        ("gptflow_queue_handed_back_total", "handed_back"),
        ("gptflow_leases_expired_total", "expired_leases"),
        ("gptflow_doorbells_lost_total", "lost_doorbells"),
        ("gptflow_duplicates_suppressed_total", "refused_results"),
    ):
        yield _gauge(name, totals.get(key, 0))
    yield _gauge("gptflow_dead_letters", seen.dead)


class WorkerCollector:
    """One worker's metrics.

    Args:
        app: the application's name.
        describe: what the worker says of itself; see `gptflow.queue.crew.Crew.describe`.
    """

    def __init__(self, app: str, describe: Callable[[], Mapping[str, Any]], tallies: Tallies):
        self._app = app
        self._describe = describe
        self._tallies = tallies

    def describe(self) -> Iterator[Family]:
        return iter(())

    def collect(self) -> Iterator[Family]:
        seen = self._describe()
        engine = seen["engine"]
        labels = (
            __version__,
            self._app,
            str(seen["model"]),
            str(engine.get("dtype", "")),
            str(engine.get("device", "")),
        )
        yield _family("gptflow_build_info", [(labels, 1)])
        yield _family("gptflow_jobs_total", self._tallies.outcomes.items())
        yield _family("gptflow_job_queue_seconds", self._tallies.queued.items())
        yield _family("gptflow_job_run_seconds", self._tallies.running.items())
        yield _gauge("gptflow_jobs_in_flight", seen["in_flight"])
        yield _gauge("gptflow_messages_in_flight", seen["messages"])
        yield _gauge("gptflow_room_items", max(0, seen["room"]))
        yield _gauge("gptflow_leases_held", seen["leases"])
        yield _gauge("gptflow_ledger_round_trips_total", seen["round_trips"])
        yield _gauge("gptflow_engine_healthy", seen["healthy"])
        yield _gauge("gptflow_engine_stalled_seconds", seen["stalled"])
        yield from _engine_families(engine)


def _engine_families(stats: Mapping[str, Any]) -> Iterator[Family]:
    """What an engine counts; one that is elsewhere counts less."""
    for name, key in (
        ("gptflow_time_to_first_token_seconds", "first_token_seconds"),
        ("gptflow_time_per_output_token_seconds", "further_token_seconds"),
    ):
        if key in stats:
            yield _family(name, [((), stats[key])])
    for name, key in (
        ("gptflow_tokens_per_second", "tokens_per_second"),
        ("gptflow_batch_occupancy_ratio", "occupancy"),
        ("gptflow_engine_steps_total", "steps"),
        ("gptflow_prefix_cache_hits_total", "prefix_hits"),
        ("gptflow_preemptions_total", "preemptions"),
    ):
        if key in stats:
            yield _gauge(name, stats[key])
    for name, keys in (
        ("gptflow_tokens_total", _TOKENS),
        ("gptflow_engine_sequences", {"running": "running", "waiting": "waiting"}),
        ("gptflow_slots", {"all": "slots", "used": "slots_used"}),
    ):
        yield _family(name, _by_name({k: stats[v] for k, v in keys.items() if v in stats}))
    yield _family("gptflow_engine_failures_total", _by_name(stats.get("failures", {})))
    if limit := stats.get("kv_tokens_limit"):
        yield _gauge("gptflow_kv_cache_usage_ratio", stats["kv_tokens_reserved"] / limit)


def _by_name(values: Mapping[Any, float]) -> Samples:
    return [((name,), value) for name, value in values.items()]


def _gauge(name: str, value: float) -> Family:
    return _family(name, [((), value)])


def _family(name: str, samples: Samples) -> Family:
    metric = ALL[name]
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels, value in samples:
            below = itertools.accumulate(value["counts"])
            bounds = [*map(str, value["bounds"]), "+Inf"]
            buckets = list(zip(bounds, below, strict=True))
            histogram.add_metric(labels, buckets, sum_value=value["sum"])
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
