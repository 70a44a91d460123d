"""Alerts: a surge as JSON, with the evidence that a person needs to judge it."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gptflow.monitoring.series import Key, Point, wilson
from gptflow.monitoring.store import View
from gptflow.monitoring.tracking import Signal

EXAMPLES = 5
TOP_ENTITIES = 5
HISTORY = 48
"""Buckets before and under the alert that go with it."""


def alert_id(monitor: str, key: Key, start: int) -> str:
    """The same surge has the same id, whoever finds it and however often."""
    name = f"{monitor}\n{key.topic}\n{key.entity}\n{start}"
    return f"alert_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def opened(
    view: View,
    monitor: str,
    signal: Signal[Key],
    points: Mapping[int, Point],
    *,
    end: int,
    bucket: int,
) -> dict[str, Any]:
    """A new alert.

    Args:
        points: of the series, by the start of their bucket.
        end: of the window, in Unix seconds.
    """
    key, reading = signal.key, signal.reading
    start = end - reading.width * bucket
    return {
        "alert_id": alert_id(monitor, key, start),
        "monitor": monitor,
        "topic": key.topic,
        "entity": key.entity or None,
        "opened_at": iso(end),
        **_measured(signal),
        "window": {"start": start, "end": end, "from": iso(start), "until": iso(end)},
        "bucket_seconds": bucket,
        "history": _history(points, end, bucket),
        **_told(view, monitor, key, start, end),
        "level": "warning",
        "status": "firing",
        "change": "opened",
    }


def escalated(
    view: View, alert: Mapping[str, Any], signal: Signal[Key], points: Mapping[int, Point], end: int
) -> dict[str, Any]:
    """The alert, now critical, with the evidence of its whole time."""
    start, bucket = alert["window"]["start"], alert["bucket_seconds"]
    return {
        **alert,
        **_measured(signal),
        "window": {**alert["window"], "end": end, "until": iso(end)},
        "history": _history(points, end, bucket),
        **_told(view, alert["monitor"], signal.key, start, end),
        "level": "critical",
        "change": "escalated",
    }


def resolved(alert: Mapping[str, Any], end: int) -> dict[str, Any]:
    """The alert, over."""
    return {**alert, "status": "resolved", "change": "resolved", "resolved_at": iso(end)}


def iso(ts: float) -> str:
    """UTC as ISO 8601."""
    moment = dt.datetime.fromtimestamp(ts, dt.UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _measured(signal: Signal[Key]) -> dict[str, Any]:
    reading, evidence = signal.reading, signal.evidence
    low, high = reading.baseline.interval
    return {
        "observed": {
            "negative": reading.negative,
            "total": reading.total,
            "share": reading.negative / reading.total if reading.total else 0.0,
            "share_interval": wilson(reading.negative, reading.total),
        },
        "expected": {
            "negative": reading.baseline.mean,
            "low": low,
            "high": high,
            "share": reading.baseline.share,
            "windows": reading.baseline.windows,
        },
        "ratio": reading.ratio,
        "p_volume": evidence.p_volume if evidence else None,
        "p_share": evidence.p_share if evidence else None,
        "cusum": evidence.cusum if evidence else None,
        "rule": signal.leg,
    }


def _history(points: Mapping[int, Point], end: int, bucket: int) -> list[dict[str, int]]:
    filled = [(at, points.get(at, Point())) for at in range(end - HISTORY * bucket, end, bucket)]
    return [
        {"start": at, "raw": p.raw, "total": p.total, "negative": p.negative} for at, p in filled
    ]


def _told(view: View, monitor: str, key: Key, start: int, end: int) -> dict[str, Any]:
    """What the posts of the window say."""
    stories = view.negatives(monitor, key, start, end)
    entities = Counter(name for story in stories for name in story["entities"])
    return {
        "examples": [
            {
                name: story[name]
                for name in ("id", "ts", "source", "topic", "p_negative", "text", "entities")
            }
            for story in stories[:EXAMPLES]
        ],
        "top_entities": [
            {"ticker": name, "count": count} for name, count in entities.most_common(TOP_ENTITIES)
        ],
    }
