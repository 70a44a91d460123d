"""Schedules: each fire is one job, however many beats there are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.errors import ConfigError
from gptflow.plugins import Schedule
from gptflow.queue.app import make_app
from gptflow.queue.schedule import PluginScheduler, due_time, fire, parse_cron


def schedule(cron: str = "*/5 * * * *") -> Schedule:
    return Schedule(name="bed.tick", task="bed.echo", cron=cron, input={"value": 1}, plugin="bed")


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("*/5 * * * *", "12:01:30", "12:05"),
        ("*/5 * * * *", "12:05:00", "12:10"),
        ("0 13 * * *", "12:59:59", "13:00"),
        ("30 9 * * 1-5", "12:00:00", None),
    ],
)
def test_the_due_time_is_the_expressions_own(cron: str, after: str, due: str | None) -> None:
    moment = datetime.fromisoformat(f"2026-03-06T{after}+00:00")  # a Friday
    expected = f"2026-03-06T{due}" if due else "2026-03-09T09:30"
    found = due_time(parse_cron(schedule(cron)), moment)
    assert found == datetime.fromisoformat(f"{expected}+00:00")


@pytest.mark.parametrize("cron", ["", "every day", "99 * * * *", "* * * *"])
def test_a_malformed_expression_names_its_schedule(cron: str) -> None:
    with pytest.raises(ConfigError, match=r"bed\.tick"):
        parse_cron(schedule(cron))


def test_a_fire_that_two_beats_send_is_one_job(server: Any) -> None:
    due = datetime(2026, 3, 6, 12, 5, tzinfo=UTC)
    settings = config.load(redis_url=server.url, app="beats")
    with Client(settings=settings) as one, Client(settings=settings) as other:
        first = fire(one.transport, schedule(), due)
        assert fire(other.transport, schedule(), due) == first
        later = fire(one.transport, schedule(), due + timedelta(minutes=5))
        assert later != first
        assert len(one.transport.jobs(None, 10)) == 2


def test_two_schedulers_on_one_server_fire_once(
    server: Any, testbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(testbed)
    settings = config.load(redis_url=server.url, app="schedulers", plugins=("testbed",))
    schedulers = [PluginScheduler(make_app(settings)) for _ in range(2)]
    # As if both had been running since two minutes ago.
    since = datetime.now(UTC) - timedelta(minutes=2)
    for scheduler in schedulers:
        for entry in scheduler.schedule.values():
            entry.last_run_at = since
        while scheduler.tick() == 0:
            pass
        scheduler.close()
        scheduler.app.close()
    with Client(settings=settings) as flow:
        (job,) = flow.transport.jobs(None, 10)
        assert job.task == "bed.echo"
        flow.transport.cancel(job.id)


def test_a_beat_process_starts_and_stops(
    start: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    beat = start("gptflow_workers.beat", app="beating")
    eventually(lambda: "Ready: 1 schedules" in beat.output, 60)
    assert beat.terminate() == 0
    assert "Traceback" not in beat.output
