"""Runs of a monitor: nothing counts twice, nothing is lost, and surges are told once."""

import asyncio
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptflow.errors import ConfigError
from gptflow.monitoring.judge import history_start
from gptflow.monitoring.monitors import Monitor
from gptflow.monitoring.runner import Classify, Failed, Report, run
from gptflow.monitoring.series import Key, Opinion, Point
from gptflow.monitoring.sources import Post
from gptflow.monitoring.store import Store

DAY, HOUR = 86_400, 3600
START = 1_772_409_600  # Monday, 2 March 2026
MONITOR = Monitor(name="market")
ALL_POSTS = Key()
Row = Mapping[str, Any]


async def by_first_word(posts: Sequence[Post]) -> list[Opinion | Failed]:
    """The first word is the label, the second the topic."""
    opinions: list[Opinion | Failed] = []
    for post in posts:
        label, topic, *_ = post.text.split()
        opinions.append(Opinion(topic=topic, label=label, p_negative=0.9, entities=("NGBK",)))
    return opinions


def row(number: int, ts: float, label: str = "neutral", topic: str = "oil") -> Row:
    return {"id": f"post-{number}", "ts": ts, "text": f"{label} {topic} story number {number}"}


def feed(days: int = 21, *, surge: bool = True) -> list[Row]:
    """Two posts an hour, every fifth of them negative; a bad morning on the last day."""
    rows = [
        row(n, START + n * HOUR / 2, "negative" if n % 5 == 0 else "neutral")
        for n in range(days * 48)
    ]
    if surge:
        bad = START + (days - 1) * DAY + 9 * HOUR
        rows += [row(10_000 + n, bad + n * 60, "negative") for n in range(40)]
    return rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.in_folder(tmp_path)


_fires = itertools.count()


def go(
    store: Store,
    rows: Sequence[Row],
    *,
    monitor: Monitor = MONITOR,
    classify: Classify = by_first_word,
    fire: str | None = None,
    **options: Any,
) -> Report:
    fire = fire or f"fire-{next(_fires)}"
    return asyncio.run(run(monitor, lambda: rows, classify, store, fire=fire, **options))


def total(store: Store, key: Key = ALL_POSTS) -> Point:
    with store.read() as view:
        return sum(view.series("market", key=key).get(key, {}).values(), Point())


def test_posts_are_counted_once_however_often_they_are_read(store: Store) -> None:
    first = go(store, feed(2, surge=False))
    assert (first.read, first.new, first.classified) == (96, 96, 96)
    assert total(store) == Point(raw=96, total=96, negative=20)
    assert total(store, Key("oil")) == total(store, Key(entity="NGBK")) == total(store)
    again = go(store, feed(3, surge=False))
    assert (again.read, again.new) == (144, 48)
    assert total(store).raw == 144


def test_the_same_fire_does_nothing_twice(store: Store) -> None:
    first = go(store, feed(2), fire="beat:12:00")
    second = go(store, feed(3), fire="beat:12:00")
    assert second.repeated
    assert second.model_dump(exclude={"repeated"}) == first.model_dump(exclude={"repeated"})


def test_a_fire_under_way_elsewhere_is_left_alone(store: Store) -> None:
    inside, release = threading.Event(), threading.Event()

    async def slow(posts: Sequence[Post]) -> list[Opinion | Failed]:
        inside.set()
        await asyncio.to_thread(release.wait, 30)
        return await by_first_word(posts)

    reports: list[Report] = []
    first = threading.Thread(
        target=lambda: reports.append(go(store, feed(1), classify=slow, fire="same"))
    )
    first.start()
    assert inside.wait(30)
    assert go(store, feed(1), fire="same").status == "busy"
    release.set()
    first.join(30)
    assert reports[0].status != "busy"


def test_runs_at_the_same_time_count_each_post_once(store: Store) -> None:
    threads = [threading.Thread(target=go, args=(store, feed(2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert total(store).raw == len(feed(2))


def test_a_run_that_fails_leaves_nothing_and_may_be_tried_again(store: Store) -> None:
    async def broken(posts: Sequence[Post]) -> list[Opinion | Failed]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        go(store, feed(2), classify=broken, fire="same")
    assert total(store) == Point()
    assert go(store, feed(2), fire="same").new == len(feed(2))


def test_repeats_add_to_the_raw_count_only(store: Store) -> None:
    rows = [
        {"id": "a", "ts": START, "text": "negative oil prices fall again on weak demand"},
        {"id": "b", "ts": START + 60, "text": "NEGATIVE oil prices fall again on weak demand"},
    ]
    report = go(store, rows)
    assert (report.new, report.duplicates, report.classified) == (2, 1, 1)
    assert total(store, Key("oil")) == Point(raw=2, total=1, negative=1)


def test_bad_rows_are_counted_and_named(store: Store) -> None:
    report = go(store, [row(1, START), {"text": "no time", "line": 7}, {"ts": START}])
    assert (report.read, report.bad_rows) == (3, 2)
    assert report.bad[0].line == 7
    assert report.bad[0].reason == "ts is missing"


def test_posts_that_fail_for_now_are_tried_again_and_others_are_not(store: Store) -> None:
    async def flaky(posts: Sequence[Post]) -> list[Opinion | Failed]:
        return [
            Failed("GF704", final=False) if "1" in p.id else Failed("GF301", final=True)
            for p in posts
        ]

    first = go(store, [row(1, START), row(2, START)], classify=flaky)
    assert (first.failed, first.new) == (2, 1)
    second = go(store, [row(1, START), row(2, START)])
    assert (second.new, second.classified) == (1, 1)


def test_posts_of_the_future_wait(store: Store) -> None:
    report = go(store, feed(2, surge=False), now=START + DAY - 1)
    assert (report.new, report.ahead) == (48, 48)


def test_posts_over_the_limit_wait(store: Store) -> None:
    small = Monitor(name="market", limit=50)
    assert go(store, feed(2, surge=False), monitor=small).left == 46
    assert go(store, feed(2, surge=False), monitor=small).new == 46


def test_two_weeks_are_needed_for_alerts(store: Store) -> None:
    report = go(store, feed(10))
    assert report.status == "insufficient_history"
    assert report.alerts == []


def test_a_surge_raises_an_alert_with_its_evidence(store: Store) -> None:
    told: list[Mapping[str, Any]] = []
    report = go(store, feed(), notify=told.append)
    assert report.status == "ok"
    (alert,) = [a for a in report.alerts if a["topic"] == "oil"]
    assert alert["observed"]["negative"] >= 40
    assert alert["ratio"] >= 2
    assert alert["expected"]["low"] <= alert["expected"]["negative"] <= alert["expected"]["high"]
    assert alert["p_volume"] < 1e-4
    assert len(alert["examples"]) == 5
    assert all(example["text"].startswith("negative oil") for example in alert["examples"])
    assert alert["top_entities"][0]["ticker"] == "NGBK"
    assert len(alert["history"]) == 48
    assert {a["alert_id"] for a in told} == {a["alert_id"] for a in report.alerts}


def test_alerts_are_the_same_read_at_once_or_hour_by_hour(tmp_path: Path) -> None:
    rows = feed(21)
    at_once, by_hour = Store.in_folder(tmp_path / "a"), Store.in_folder(tmp_path / "b")
    go(at_once, rows)
    go(by_hour, rows, now=START + 20 * DAY)
    for hour in range(1, 25):
        go(by_hour, rows, now=START + 20 * DAY + hour * HOUR)
    go(by_hour, rows)

    def opened(store: Store) -> set[str]:
        with store.read() as view:
            return {alert["alert_id"] for alert in view.alerts("market")}

    assert opened(at_once) == opened(by_hour) != set()


def test_an_alert_that_nobody_heard_is_told_by_the_next_run(store: Store) -> None:
    def unreachable(alert: Mapping[str, Any]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        go(store, feed(), notify=unreachable)
    told: list[Mapping[str, Any]] = []
    go(store, feed(), notify=told.append)
    assert told
    go(store, feed(), notify=lambda alert: pytest.fail("told twice"))


def test_a_change_that_comes_in_while_another_is_told_is_told_too(store: Store) -> None:
    def escalate(alert: Mapping[str, Any]) -> None:
        with store.write() as changes:
            changes.save_alert({**alert, "change": "escalated"}, delivered=False)

    go(store, feed(), notify=escalate)
    told: list[Mapping[str, Any]] = []
    go(store, feed(), notify=told.append)
    assert {alert["change"] for alert in told} == {"escalated"}


def test_an_open_alert_is_known_however_many_came_after_it(store: Store) -> None:
    def alert(number: int, status: str) -> Mapping[str, Any]:
        window = {"start": START + number, "end": START + number + HOUR}
        return {"alert_id": f"a{number}", "monitor": "market", "window": window, "status": status}

    with store.write() as changes:
        changes.save_alert(alert(0, "firing"), delivered=True)
        for number in range(1, 1002):
            changes.save_alert(alert(number, "resolved"), delivered=True)
        assert [a["alert_id"] for a in changes.open_alerts("market")] == ["a0"]
        assert len(changes.open_alerts("market", or_after=START)) == 1002


def test_an_alert_from_before_history_begins_is_resolved(store: Store) -> None:
    opened = {alert["alert_id"] for alert in go(store, feed()).alerts}
    fresh = [row(60_000 + n, START + 120 * DAY + n * HOUR / 2) for n in range(96)]
    report = go(store, feed() + fresh, now=START + 122 * DAY)
    assert report.status == "insufficient_history"
    assert {alert["alert_id"] for alert in report.alerts} == opened
    assert {alert["status"] for alert in report.alerts} == {"resolved"}


def test_a_surge_is_over_when_a_whole_window_is_quiet(store: Store) -> None:
    go(store, feed())
    later = [row(50_000 + n, START + 21 * DAY + n * HOUR / 2) for n in range(48 * 3)]
    report = go(store, feed() + later)
    assert {alert["status"] for alert in report.alerts} == {"resolved"}
    assert all(alert["resolved_at"] > alert["opened_at"] for alert in report.alerts)


def test_a_silent_feed_stops_the_clock(store: Store) -> None:
    first = go(store, feed(), now=START + 40 * DAY)
    assert first.judged_until == START + 21 * DAY - HOUR
    assert go(store, feed(), now=START + 60 * DAY).alerts == []


def test_posts_from_before_the_kept_weeks_are_left_out(store: Store) -> None:
    fresh = [row(n, START + n * HOUR / 2) for n in range(40)]
    for _ in range(2):
        report = go(store, [row(90_000, 0), *fresh])
        assert report.old == 1
        assert report.history_days < 1
    assert total(store).raw == 40


@pytest.mark.parametrize("days_ago", [[5], [40], [69], [200], [6, 12], [5, 10, 15, 60]])
def test_stale_posts_are_no_history(store: Store, days_ago: Sequence[int]) -> None:
    stale = [row(90_000 + days, START - days * DAY) for days in days_ago]
    for rows in (stale, [*stale, *feed(3, surge=False)], [*stale, *feed(3)]):
        report = go(store, rows)
        assert (report.status, report.alerts) == ("insufficient_history", [])
    assert report.history_days < 4


def test_a_stale_post_that_comes_late_is_no_history(store: Store) -> None:
    go(store, feed(3, surge=False))
    report = go(store, [*feed(3), row(90_000, START - 60 * DAY)])
    assert (report.status, report.alerts) == ("insufficient_history", [])


def test_history_begins_anew_after_a_gap_until_the_warm_up_is_over() -> None:
    def days(*spans: tuple[int, int]) -> list[int]:
        return [day * DAY for first, last in spans for day in range(first, last + 1)]

    assert history_start([]) is None
    assert history_start(days((0, 13), (18, 30))) == 18 * DAY
    assert history_start(days((0, 13), (17, 30))) == 0
    assert history_start(days((0, 14), (40, 50))) == 0
    assert history_start(days((0, 0), (30, 30), (60, 80))) == 60 * DAY


def test_what_is_usual_is_not_a_surge_after_an_outage(store: Store) -> None:
    usual = [row(n, START + n * 600, "negative" if n % 2 else "neutral") for n in range(40 * 144)]
    outage = range(START + 15 * DAY, START + 35 * DAY)
    report = go(store, [post for post in usual if int(post["ts"]) not in outage])
    assert report.status == "ok"
    assert report.alerts == []


def test_after_a_year_of_silence_history_begins_anew(store: Store) -> None:
    go(store, feed(surge=False))
    later = [row(70_000 + n, START + 400 * DAY + n * HOUR / 2) for n in range(96)]
    report = go(store, later, now=START + 402 * DAY)
    assert report.status == "insufficient_history"
    assert report.history_days < 2


def test_reports_are_forgotten_with_the_texts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        then = time.time() - 71 * DAY
        patch.setattr(time, "time", lambda: then)
        go(store, feed(1), fire="then")
    go(store, feed(1), fire="now")
    with store.read() as view:
        assert [run["fire"] for run in view.runs("market")] == ["now"]


def test_late_posts_count_but_raise_no_alert(store: Store) -> None:
    go(store, feed(surge=False))
    late = [row(20_000 + n, START + 15 * DAY + n * 60, "negative") for n in range(40)]
    report = go(store, feed(surge=False) + late)
    assert (report.late, report.alerts) == (40, [])
    assert total(store).raw == len(feed(surge=False)) + 40


def test_a_paused_monitor_reads_nothing(store: Store) -> None:
    with store.write() as changes:
        assert changes.pause("market")
        assert not changes.pause("market")
    assert go(store, feed(1)).status == "paused"
    with store.write() as changes:
        changes.pause("market", False)
    assert go(store, feed(1)).new == len(feed(1))


def test_a_monitor_keeps_its_bucket(store: Store) -> None:
    go(store, feed(1))
    with pytest.raises(ConfigError, match="buckets of 3600 s"):
        go(store, feed(2), monitor=Monitor(name="market", bucket=7200))


def test_thresholds_are_found_from_the_monitors_own_past(store: Store) -> None:
    go(store, feed(49, surge=False))
    go(store, feed(50, surge=False))
    with store.read() as view:
        calibration = view.state("market").calibration
    assert calibration["series_weeks"] == 12
    assert 0 < calibration["thresholds"]["alpha"] <= 10**-2.5
