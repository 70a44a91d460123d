"""What a scheduler does next about a schedule, at any time and after any absence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gptflow.queue.fires import PATIENCE, Drop, Place, Send, Wait, Watch, next_step, write_mark
from gptflow.schedule import Schedule

START = datetime(2026, 3, 6, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def step(
    *,
    settled: float,
    since: float,
    now: float,
    held: float | None = None,
    paused: bool = False,
    informed: float = -1e6,
    **options: Any,
) -> Any:
    """What to do about a schedule that fires every ten seconds."""
    schedule = Schedule(name="mine.tick", task="a.b", input="x", plugin="mine", every=10, **options)
    place = Place(
        mark=write_mark(at(settled)), held=None if held is None else at(held), paused=paused
    )
    return next_step(schedule, place, Watch(at(since), at(informed)), at(now))


def test_what_is_due_is_sent_and_what_is_not_is_waited_for() -> None:
    assert step(settled=0, since=-60, now=9.9) == Wait(at(10))
    assert step(settled=0, since=-60, now=10) == Send(at(10))
    assert step(settled=10, since=-60, now=10) == Wait(at(20))


@pytest.mark.parametrize("policy", ["skip", "last", "all"])
def test_what_a_running_scheduler_could_not_send_is_sent_one_by_one(policy: str) -> None:
    # Redis was away for 45 seconds.
    sent = []
    settled = 0.0
    while isinstance(found := step(settled=settled, since=-5, now=45, policy=policy), Send):
        sent.append(found.time)
        settled = (found.time - START).total_seconds()
    assert sent == [at(10), at(20), at(30), at(40)]
    assert found == Wait(at(50))


def test_what_is_too_late_is_let_go() -> None:
    assert step(settled=0, since=-5, now=1000, catchup=100) == Drop(at(900))
    assert step(settled=900, since=-5, now=1000, catchup=100) == Send(at(910))
    # A minute is granted to every fire that somebody was there for.
    assert step(settled=0, since=-5, now=65, catchup=0) == Send(at(10))
    assert step(settled=0, since=-5, now=75, catchup=0) == Drop(at(15))


def test_what_came_before_the_scheduler_goes_by_the_policy() -> None:
    missed: dict[str, Any] = {"settled": 0, "since": 95, "now": 96}
    assert step(**missed, policy="skip") == Drop(at(95))
    assert step(**missed, policy="last") == Send(at(90))
    assert step(**missed, policy="all") == Send(at(10))
    # What came after it is sent whatever the policy.
    for policy in ("skip", "last", "all"):
        assert step(settled=95, since=95, now=101, policy=policy) == Send(at(100))


def test_the_window_bounds_what_is_made_up_for() -> None:
    missed: dict[str, Any] = {"settled": 0, "since": 995, "now": 1000}
    assert step(**missed, policy="all", catchup=45) == Send(at(960))
    assert step(**missed, policy="last", catchup=45) == Send(at(990))
    assert step(**missed, policy="all", catchup=0) == Drop(at(995))
    assert step(**missed, policy="last", catchup=3) == Drop(at(995))


def test_a_new_scheduler_gives_others_the_time_to_send_what_is_theirs() -> None:
    missed: dict[str, Any] = {"settled": 0, "since": 11, "informed": 12}
    early, ready = 13, 12 + PATIENCE.total_seconds()
    for policy in ("skip", "last"):
        assert step(**missed, now=early, policy=policy) == Wait(at(ready))
        assert not isinstance(step(**missed, now=ready, policy=policy), Wait)
    # Nobody else would do otherwise than send it.
    assert step(**missed, now=early, policy="all") == Send(at(10))


def test_what_was_held_back_is_not_missed() -> None:
    held: dict[str, Any] = {"settled": 0, "since": 95, "now": 96, "policy": "skip"}
    assert step(**held, held=35) == Send(at(10))
    assert step(**held | {"settled": 30}, held=35) == Drop(at(95))
    assert step(**held | {"now": 1000}, held=35, catchup=500) == Drop(at(500))


def test_a_paused_schedule_waits_for_its_next_fire_and_looks_again() -> None:
    assert step(settled=0, since=-5, now=45, paused=True) == Wait(at(50))


def test_a_mark_is_a_moment_to_the_microsecond() -> None:
    for microseconds in (0, 1, 499_999, 999_999):
        moment = START + timedelta(microseconds=microseconds)
        assert Place(mark=write_mark(moment)).settled == moment
