"""One run of a monitor: read, drop repeats, classify, count, judge, record, tell.

A run may be repeated at any point: posts are known by their id, so nothing counts twice; a fire
id that has ended gives its report again; and all that a run found is recorded in one transaction.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from gptflow.errors import ConfigError
from gptflow.monitoring.duplicates import WINDOW, Fingerprint, Stories
from gptflow.monitoring.judge import HISTORY, judge
from gptflow.monitoring.monitors import Monitor
from gptflow.monitoring.series import Opinion, Point, floor
from gptflow.monitoring.sources import BadRow, Post, posts
from gptflow.monitoring.store import Changes, State, Store, Story
from gptflow.monitoring.surge import DAY, WARM_UP
from gptflow.task import Output

Status = Literal["ok", "insufficient_history", "paused", "busy"]
Notify = Callable[[Mapping[str, Any]], None]

WARM_UP_DAYS = WARM_UP // DAY

REPORTED = 20
"""Bad rows that a report names; all of them are counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """A post that could not be classified. If `final`, trying again would not help."""

    reason: str
    final: bool


Classify = Callable[[Sequence[Post]], Awaitable[Sequence[Opinion | Failed]]]
"""Opinions on posts, in their order."""


class Report(Output):
    """What a run of a monitor did."""

    monitor: str
    fire: str = Field(description="names the run; the same fire never runs twice")
    status: Status = Field("ok", description="paused and busy: nothing was done")
    repeated: bool = Field(False, description="this fire had run before; this is its report")
    read: int = Field(0, description="rows in the feed, good and bad")
    bad_rows: int = 0
    bad: list[BadRow] = Field([], description="the first bad rows, and what is wrong with them")
    ahead: int = Field(0, description="posts from after `now`, left for a later run")
    old: int = Field(0, description="posts from over ten weeks before the newest, left out")
    left: int = Field(0, description="new posts over the limit, left for the next run")
    new: int = Field(0, description="posts that no earlier run had read")
    duplicates: int = Field(0, description="new posts that repeat a story")
    classified: int = 0
    failed: int = Field(0, description="posts that could not be classified")
    late: int = Field(0, description="posts of buckets judged before; they raise no alert")
    points: int = Field(0, description="buckets of series that changed")
    judged_until: int | None = Field(None, description="end of the last judged bucket, Unix s")
    history_days: float = 0.0
    alerts: list[dict[str, Any]] = Field([], description="that opened, escalated or were resolved")


async def run(
    monitor: Monitor,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    classify: Classify,
    store: Store,
    *,
    fire: str,
    now: float | None = None,
    notify: Notify = lambda alert: None,
) -> Report:
    """Run a monitor once.

    Args:
        rows: opens the feed.
        fire: names this run; the same name never runs twice.
        now: Unix time; posts from after it are left for later.
        notify: is told of each change of an alert, at least once.
    """
    now = time.time() if now is None else now
    report = Report(monitor=monitor.name, fire=fire)
    if (earlier := await asyncio.to_thread(_claim, store, report)) is not None:
        return earlier
    try:
        new = await asyncio.to_thread(_read, monitor, rows, store, now, report)
        stories = await _classify(monitor, new, classify, store, report)
        await asyncio.to_thread(_record, monitor, stories, store, now, report)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(_release, store, report))
        raise
    await asyncio.to_thread(_deliver, monitor, store, notify)
    return report


def _claim(store: Store, report: Report) -> Report | None:
    """Start the run; or else what to answer in its place."""
    with store.write() as changes:
        if changes.state(report.monitor).paused:
            return report.model_copy(update={"status": "paused"})
        claim = changes.claim(report.monitor, report.fire)
    if claim.report is not None:
        return Report.model_validate({**claim.report, "repeated": True})
    return None if claim.ours else report.model_copy(update={"status": "busy"})


def _release(store: Store, report: Report) -> None:
    with store.write() as changes:
        changes.release(report.monitor, report.fire)


def _read(
    monitor: Monitor,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    store: Store,
    now: float,
    report: Report,
) -> list[Post]:
    """The posts that are new, in the order of their time."""
    found: dict[str, Post] = {}
    for post in posts(rows()):
        report.read += 1
        if isinstance(post, BadRow):
            report.bad_rows += 1
            if len(report.bad) < REPORTED:
                report.bad.append(post)
        elif post.ts > now:
            report.ahead += 1
        else:
            found.setdefault(post.id, post)
    with store.read() as view:
        seen = view.seen(monitor.name, found)
        newest = view.state(monitor.name).newest or 0.0
    horizon = max([newest, *(post.ts for post in found.values())]) - HISTORY
    report.old = sum(post.ts < horizon for post in found.values())
    new = sorted(
        (post for post in found.values() if post.ts >= horizon and post.id not in seen),
        key=lambda post: (post.ts, post.id),
    )
    report.left = max(0, len(new) - monitor.limit)
    return new[: monitor.limit]


async def _classify(
    monitor: Monitor, new: Sequence[Post], classify: Classify, store: Store, report: Report
) -> list[Story]:
    """Stories with what was found out about them; those to be tried again are left out."""
    stories = await asyncio.to_thread(_find_repeats, monitor, new, store)
    fresh = [post for post, story in zip(new, stories, strict=True) if story.duplicate_of is None]
    opinions = dict(
        zip((post.id for post in fresh), await classify(fresh) if fresh else (), strict=True)
    )
    kept = []
    for story in stories:
        match opinions.get(story.id):
            case Opinion() as opinion:
                report.classified += 1
                story = dataclasses.replace(
                    story,
                    topic=opinion.topic,
                    label=opinion.label,
                    p_negative=opinion.p_negative,
                    entities=opinion.entities,
                )
            case Failed(final=final):
                report.failed += 1
                if not final:
                    continue
        kept.append(story)
    return kept


def _find_repeats(monitor: Monitor, new: Sequence[Post], store: Store) -> list[Story]:
    if not new:
        return []
    known = Stories()
    with store.read() as view:
        earlier = view.fingerprints(monitor.name, new[0].ts - WINDOW, new[-1].ts + WINDOW)
        for id, ts, fingerprint in earlier:
            known.add(id, ts, fingerprint)
    stories = []
    for post in new:
        fingerprint = Fingerprint.of(post.text)
        original = known.find(post.ts, fingerprint)
        if original is None:
            known.add(post.id, post.ts, fingerprint)
        stories.append(
            Story(
                id=post.id,
                ts=post.ts,
                text=post.text,
                source=post.source,
                fingerprint=fingerprint,
                duplicate_of=original,
            )
        )
    return stories


def _record(
    monitor: Monitor, stories: Sequence[Story], store: Store, now: float, report: Report
) -> None:
    with store.write() as changes:
        state = changes.state(monitor.name)
        if state.bucket not in (None, monitor.bucket):
            raise ConfigError(
                f"Monitor {monitor.name!r} has counted in buckets of {state.bucket} s so far, "
                f"and is now declared with {monitor.bucket} s.",
                hint="Give the monitor a new name, or its old bucket.",
            )
        state = dataclasses.replace(state, bucket=monitor.bucket)
        state = _count(changes, state, monitor.bucket, stories, report)
        state, report.alerts = judge(changes, monitor, state, now=now)
        changes.save(state)
        report.judged_until = state.judged
        report.history_days = state.history_days
        if report.history_days < WARM_UP_DAYS:
            report.status = "insufficient_history"
        if state.judged is not None:
            changes.forget(monitor.name, state.judged - HISTORY)
        changes.forget_runs(monitor.name, time.time() - HISTORY)
        changes.finish(monitor.name, report.fire, report.model_dump(mode="json"))


def _count(
    changes: Changes, state: State, bucket: int, stories: Sequence[Story], report: Report
) -> State:
    """Record stories and add them to their series; a repeat adds to its original's raw count."""
    touched = set()
    for story in stories:
        if not changes.add_story(state.name, story):
            continue
        report.new += 1
        start = floor(story.ts, bucket)
        point, topic, label, entities = Point(raw=1), story.topic, story.label, story.entities
        if story.duplicate_of is not None:
            report.duplicates += 1
            topic, entities = changes.topic_of(state.name, story.duplicate_of)
        if topic is None:
            continue
        opinion = Opinion(topic=topic, label=label or "", p_negative=0.0, entities=entities)
        if story.duplicate_of is None:
            point = opinion.point
        for key in opinion.keys:
            changes.add_point(state.name, key, start, point)
            touched.add((key, start))
        if state.judged is not None and start < state.judged:
            report.late += 1
        newest = story.ts if state.newest is None else max(state.newest, story.ts)
        state = dataclasses.replace(state, newest=newest)
    report.points = len(touched)
    return state


def _deliver(monitor: Monitor, store: Store, notify: Notify) -> None:
    with store.read() as view:
        waiting = view.undelivered(monitor.name)
    for alert in waiting:
        notify(alert)
    if waiting:
        with store.write() as changes:
            changes.mark_delivered(waiting)
