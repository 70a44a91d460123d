"""Judging: hold the buckets that closed since the last run against the series' past.

A bucket closes when the newest post is later than its end by the permitted lateness. A feed that
falls silent stops this clock, so that a broken source is not taken for calm.

History is counted from the first post of the kept weeks, yet a gap before the warm-up is over
starts it anew: a few stale posts in front of a new feed are no history. Later gaps are kept out of
the baselines: a source that was broken for days was not calm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gptflow.monitoring import alerts
from gptflow.monitoring.calibration import calibrate
from gptflow.monitoring.monitors import Monitor
from gptflow.monitoring.series import Key, Point, counts, floor
from gptflow.monitoring.store import Changes, State
from gptflow.monitoring.surge import DAY, WARM_UP, WEEK, Counts, Spread
from gptflow.monitoring.tracking import NEW_NORMAL, Panel, Signal, Track

HISTORY = 10 * WEEK
"""Seconds of series and texts that are kept: eight weeks of baseline and room for the lags."""

LONGEST_GAP = 4 * DAY
"""Seconds without a post that say nothing; a long weekend is shorter."""

FEWEST_NEGATIVES = 7
"""A series with fewer of them in all its history can neither fire nor teach anything."""


def judge(
    changes: Changes, monitor: Monitor, state: State, *, now: float
) -> tuple[State, list[dict[str, Any]]]:
    """Judge each bucket that closed, in order.

    Returns:
        Where the monitor then stands, and the alerts that changed, already recorded.
    """
    if state.newest is None:
        return state, []
    bucket = monitor.bucket
    closed = floor(min(state.newest, now) - monitor.lateness, bucket)
    starts = changes.starts(monitor.name, since=closed - HISTORY)
    origin = history_start(starts)
    if origin is None:
        return state, []
    state = dataclasses.replace(state, first=origin)
    since = origin if state.judged is None else max(origin, state.judged)
    if closed <= since:
        return state, []
    points = {
        key: series
        for key, series in changes.series(monitor.name, since=origin).items()
        if sum(point.negative for point in series.values()) >= FEWEST_NEGATIVES
    }
    series = {
        key: counts(found, start=origin, stop=closed, bucket=bucket)
        for key, found in points.items()
    }
    _keep_out_gaps(series, starts, origin, bucket)
    open_alerts = _known(changes, monitor, series, origin)
    state = _calibrated(monitor, state, series, closed)
    rule = dataclasses.replace(monitor.rule, **state.calibration.get("thresholds", {}))
    stored = changes.tracks(monitor.name)
    changed = _lapsed(changes, monitor, stored, open_alerts, origin)
    tracks = {key: _load(stored[key], origin // bucket) for key in series if key in stored}
    panel: Panel[Key] = Panel(series, tracks, rule)
    for end in range((since - origin) // bucket + 1, (closed - origin) // bucket + 1):
        for signal in panel.step(end):
            alert = _change(
                changes, monitor, signal, open_alerts, points[signal.key], origin + end * bucket
            )
            changed[alert["alert_id"]] = alert
    for alert in changed.values():
        changes.save_alert(alert, delivered=False)
    changes.save_tracks(
        monitor.name, {key: _dump(track, origin // bucket) for key, track in panel.tracks.items()}
    )
    return dataclasses.replace(state, judged=closed), list(changed.values())


def history_start(starts: Iterable[int]) -> int | None:
    """Where history begins, given the buckets that hold posts in order; None without any."""
    first = last = None
    for start in starts:
        if first is None or last is None:
            first = last = start
        if start - last > LONGEST_GAP and last - first < WARM_UP:
            first = start
        last = start
    return first


def _keep_out_gaps(
    series: Mapping[Key, Counts], starts: Sequence[int], origin: int, bucket: int
) -> None:
    for last, following in pairwise(starts):
        if following - last > LONGEST_GAP:
            for found in series.values():
                found.exclude((last - origin) // bucket + 1, (following - origin) // bucket)


def _change(
    changes: Changes,
    monitor: Monitor,
    signal: Signal[Key],
    open_alerts: dict[Key, dict[str, Any]],
    points: Mapping[int, Point],
    end: int,
) -> dict[str, Any]:
    """The alert that a signal is about, as it now is."""
    before = open_alerts.get(signal.key)
    if signal.change == "opened" or before is None:
        alert = alerts.opened(changes, monitor.name, signal, points, end=end, bucket=monitor.bucket)
    elif signal.change == "escalated":
        alert = alerts.escalated(changes, before, signal, points, end)
    else:
        alert = alerts.resolved(before, end)
    open_alerts[signal.key] = alert
    return alert


def _known(
    changes: Changes, monitor: Monitor, series: Mapping[Key, Counts], origin: int
) -> dict[Key, dict[str, Any]]:
    """The open alerts; what any alert covers is kept out of the baselines."""
    open_alerts: dict[Key, dict[str, Any]] = {}
    for alert in changes.open_alerts(monitor.name, or_after=origin):
        key = Key(alert["topic"], alert["entity"] or "")
        if alert["status"] == "firing":
            open_alerts.setdefault(key, alert)
        if key in series:
            start = alert["window"]["start"]
            end = min(alert["window"]["end"], start + NEW_NORMAL)
            if end > origin:
                series[key].exclude(
                    (start - origin) // monitor.bucket, (end - origin) // monitor.bucket
                )
    return open_alerts


def _lapsed(
    changes: Changes,
    monitor: Monitor,
    stored: dict[Key, dict[str, Any]],
    open_alerts: dict[Key, dict[str, Any]],
    origin: int,
) -> dict[str, dict[str, Any]]:
    """Resolve, by id, what last fired before history begins: no window will show its end."""
    lapsed = {}
    for key, alert in list(open_alerts.items()):
        fired = stored[key]["fired"]
        if fired is not None and fired * monitor.bucket <= origin:
            lapsed[alert["alert_id"]] = alerts.resolved(alert, origin)
            del open_alerts[key], stored[key]
            changes.save_tracks(monitor.name, {key: dataclasses.asdict(Track())})
    return lapsed


def _calibrated(monitor: Monitor, state: State, series: Mapping[Key, Counts], closed: int) -> State:
    """Find the thresholds anew, once a day, from what came before the buckets to be judged."""
    if state.judged is None or closed - state.calibration.get("at", 0) < DAY:
        return state
    upto = (state.judged - closed) // monitor.bucket
    past = {key: found.head(len(found) + upto) for key, found in series.items()}
    found = calibrate([past], monitor.rule, budget=monitor.false_alarms) if past else None
    if found is None:
        return state
    thresholds = {"alpha": found.rule.alpha, "cusum_limit": found.rule.cusum_limit}
    return dataclasses.replace(
        state,
        calibration={
            "at": closed,
            "thresholds": thresholds,
            "series_weeks": found.series_weeks,
            "alarms": found.alarms,
        },
    )


def _load(stored: Mapping[str, Any], origin: int) -> Track:
    """A track with its buckets numbered from the origin."""
    spreads = {int(width): Spread(**spread) for width, spread in stored["spreads"].items()}
    return _shifted(Track(**{**stored, "spreads": spreads}), -origin)


def _dump(track: Track, origin: int) -> dict[str, Any]:
    """A track with its buckets numbered from 1970, as JSON."""
    return dataclasses.asdict(_shifted(track, origin))


def _shifted(track: Track, by: int) -> Track:
    return dataclasses.replace(
        track,
        opened=None if track.opened is None else track.opened + by,
        fired=None if track.fired is None else track.fired + by,
    )
