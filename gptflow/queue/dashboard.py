"""The Grafana dashboard, made of the catalogue's names.

python -m gptflow.queue.dashboard > docs/grafana-dashboard.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptflow.queue.catalogue import ALL

_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_RATE = "[$__rate_interval]"

Query = tuple[str, str]
"""A PromQL expression, and the legend of what it gives."""


def _name(metric: str) -> str:
    """The metric's full name; KeyError for one that the catalogue does not have."""
    return ALL[f"gptflow_{metric}"].name


def _queue(metric: str, label: str) -> Query:
    # Every worker shows the whole queue.
    return f"max by ({label}) ({_name(metric)})", f"{{{{{label}}}}}"


def _total(metric: str, legend: str) -> Query:
    return f"max(rate({_name(metric)}{_RATE}))", legend


def _rate(metric: str, label: str) -> Query:
    return f"sum by ({label}) (rate({_name(metric)}{_RATE}))", f"{{{{{label}}}}}"


def _per_worker(metric: str) -> Query:
    return _name(metric), "{{instance}}"


def _quantiles(metric: str) -> list[Query]:
    rate = f"sum by (le) (rate({_name(metric)}_bucket{_RATE}))"
    return [
        (f"histogram_quantile({share}, {rate})", f"p{round(100 * share)}")
        for share in (0.5, 0.95, 0.99)
    ]


ROWS: tuple[tuple[str, str, Sequence[Query]], ...] = (
    ("Oldest job that could run", "s", [_queue("queue_oldest_age_seconds", "class")]),
    ("Items that wait", "short", [_queue("queue_depth", "class")]),
    ("Backlog at the present pace", "s", [(f"max({_name('queue_backlog_seconds')})", "backlog")]),
    ("Jobs that ended, a second", "short", [_rate("jobs_total", "outcome")]),
    ("By plugin", "short", [_rate("jobs_total", "plugin")]),
    (
        "Accepted and refused, a second",
        "short",
        [
            (f"sum(max by (class) (rate({_name('queue_accepted_total')}{_RATE})))", "accepted"),
            (f"sum(max by (class) (rate({_name('queue_refused_total')}{_RATE})))", "refused"),
        ],
    ),
    ("Seconds in the queue", "s", _quantiles("job_queue_seconds")),
    ("Seconds running", "s", _quantiles("job_run_seconds")),
    (
        "Trouble, a second",
        "short",
        [
            _total("leases_expired_total", "leases expired"),
            _total("doorbells_lost_total", "messages lost"),
            _total("duplicates_suppressed_total", "results refused"),
            _total("queue_retried_total", "retried"),
        ],
    ),
    (
        "Workers and dead letters",
        "short",
        [
            (f"max({_name('workers')})", "workers"),
            (f"max({_name('dead_letters')})", "dead letters"),
        ],
    ),
    ("In flight", "short", [_per_worker("jobs_in_flight")]),
    ("Slots in use", "percentunit", [_per_worker("batch_occupancy_ratio")]),
    ("Key-value cache reserved", "percentunit", [_per_worker("kv_cache_usage_ratio")]),
    ("Tokens a second", "short", [_rate("tokens_total", "kind")]),
    ("Time to the first token", "s", _quantiles("time_to_first_token_seconds")),
    ("Time between tokens", "s", _quantiles("time_per_output_token_seconds")),
    (
        "Prefix hits and pre-emptions, a second",
        "short",
        [
            (f"sum(rate({_name('prefix_cache_hits_total')}{_RATE}))", "prefix hits"),
            (f"sum(rate({_name('preemptions_total')}{_RATE}))", "pre-emptions"),
        ],
    ),
    (
        "Round trips to the ledger per job",
        "short",
        [
            (
                f"sum(rate({_name('ledger_round_trips_total')}{_RATE}))"
                f" / sum(rate({_name('jobs_total')}{_RATE}))",
                "round trips",
            )
        ],
    ),
)


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": "gptflow",
        "title": "GPTFlow",
        "tags": ["gptflow"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": [_panel(number, *row) for number, row in enumerate(ROWS)],
    }


def _panel(number: int, title: str, unit: str, queries: Sequence[Query]) -> dict[str, Any]:
    down, across = divmod(number, _ACROSS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"x": across * _WIDTH, "y": down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(queries)
        ],
    }


def main() -> None:
    print(json.dumps(dashboard(), indent=1))


if __name__ == "__main__":
    main()
