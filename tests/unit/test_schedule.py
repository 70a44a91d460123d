"""Schedules as plugins declare them, and what is said of those that will not do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.envelope import ID_PATTERN, Envelope
from gptflow.errors import PluginError, ScheduleError
from gptflow.hookspecs import hookimpl
from gptflow.plugins import Registry
from gptflow.schedule import Fire, Schedule

NOON = datetime(2026, 3, 6, 12, 5, tzinfo=UTC)


def schedule(**options: Any) -> Schedule:
    given = {"name": "mine.daily", "task": "text.chat", "input": "x", "plugin": "mine"}
    if not {"cron", "every"} & options.keys():
        given["cron"] = "0 9 * * *"
    return Schedule(**given | options)


@pytest.mark.parametrize(
    ("options", "complaint", "advice"),
    [
        ({"cron": "99 * * * *"}, "'99' is no minute", "Five fields"),
        ({"cron": "* * * * * *"}, "6 fields", "every=1.0"),
        ({"cron": "@hourly"}, "1 fields", "cron='0 * * * *'"),
        ({"cron": "0 0 31 2 *"}, "never fire", "cron='0 0 1 * *'"),
        ({"cron": 5}, "5", "Five fields"),
        ({"cron": None, "every": None}, "either cron or every", "cron='0 * * * *'"),
        ({"cron": "0 9 * * *", "every": 5.0}, "either cron or every", "every=1.0"),
        ({"every": 0.5}, "every=0.5", "from 1 to"),
        ({"every": float("nan")}, "every=nan", "from 1 to"),
        ({"every": True}, "every=True", "from 1 to"),
        ({"every": 60.0, "timezone": "Europe/Berlin"}, "every and a timezone", "leave timezone"),
        ({"timezone": "Europe/Berln"}, "unknown", "Did you mean 'Europe/Berlin'?"),
        ({"timezone": "../../etc/passwd"}, "unknown", "IANA"),
        ({"timezone": None}, "unknown", "IANA"),
        ({"policy": "some"}, "policy='some'", "'skip', 'last', 'all'"),
        ({"overlap": "kill"}, "overlap='kill'", "'allow', 'skip', 'queue', 'replace'"),
        ({"job_class": "slow"}, "job_class='slow'", "'interactive', 'standard', 'batch'"),
        ({"catchup": -1}, "catchup=-1", "86400"),
        ({"catchup": float("inf")}, "catchup=inf", "86400"),
        ({"tenant": "a b"}, "'tenant'", ""),
        ({"name": "mine.a b"}, "name", "dashes"),
        ({"input": None}, "cannot be sent", ""),
        ({"input": {"value": float("nan")}}, "not JSON", ""),
        ({"input": object()}, "not JSON", ""),
    ],
)
def test_what_will_not_do_is_named_with_the_schedule_and_what_to_write(
    options: dict[str, Any], complaint: str, advice: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule(**options)
    assert options.get("name", "mine.daily") in caught.value.message
    assert complaint in caught.value.message
    assert advice in (caught.value.hint or "")
    assert caught.value.code == "GF206"


def test_a_plugin_says_everything_with_one_hook() -> None:
    class Plugin:
        @hookimpl
        def register_schedules(self, register: Any) -> None:
            register(
                "report",
                task="text.chat",
                input={"text": "x"},
                cron="0 9 * * mon-fri",
                timezone="Europe/Berlin",
                policy="all",
                catchup=3600,
                overlap="queue",
                job_class="batch",
                tenant="acme",
            )
            register("pulse", task="text.chat", input={"text": "x"}, every=1.0)

    registry = Registry()
    registry.register(Plugin(), "mine")
    report, pulse = registry.schedules.values()
    assert report.when == "0 9 * * mon-fri Europe/Berlin"
    assert report.times.next(NOON) == datetime(2026, 3, 9, 8, 0, tzinfo=UTC)
    envelope = report.envelope("app", NOON)
    assert (envelope.tenant, envelope.job_class) == ("acme", "batch")
    assert (pulse.when, pulse.policy, pulse.overlap) == ("every 1 s", "last", "allow")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"crom": "0 9 * * *"}, "option 'crom', which is unknown. Did you mean 'cron'?"),
        ({"cron": "0 9 * *"}, "'mine.daily' has the cron expression '0 9 * *': it has 4 fields"),
    ],
)
def test_a_plugin_with_a_bad_schedule_does_not_load(
    options: dict[str, Any], complaint: str
) -> None:
    class Plugin:
        @hookimpl
        def register_schedules(self, register: Any) -> None:
            register("daily", task="text.chat", input={"text": "x"}, **options)

    registry = Registry()
    with pytest.raises(PluginError, match=re.escape(complaint)):
        registry.register(Plugin(), "mine")
    assert registry.schedules == {}


def test_a_name_is_taken_once() -> None:
    class Plugin:
        @hookimpl
        def register_schedules(self, register: Any) -> None:
            for _ in range(2):
                register("daily", task="text.chat", input="x", every=5)

    with pytest.raises(ScheduleError, match=r"'mine\.daily' is registered twice"):
        Registry().register(Plugin(), "mine")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"task": "text.chatt"}, "Did you mean 'text.chat'?"),
        ({"input": {"txet": "x"}}, "no input field 'txet'"),
    ],
)
def test_its_task_and_input_are_checked_once_all_plugins_are_there(
    options: dict[str, Any], complaint: str
) -> None:
    registry = Registry.load(["text"])
    registry.check_schedule(schedule())
    with pytest.raises(ScheduleError, match=r"Schedule 'mine\.daily': ") as caught:
        registry.check_schedule(schedule(**options))
    assert complaint in str(caught.value)


def test_a_fires_job_has_an_id_of_its_own_that_anybody_can_work_out() -> None:
    fire = Fire("mine.daily", NOON)
    again = Fire("mine.daily", datetime.fromisoformat("2026-03-06T13:05:00+01:00"))
    assert fire.job_id("app") == again.job_id("app")
    others = [
        fire.job_id("other"),
        Fire("mine.weekly", NOON).job_id("app"),
        Fire("mine.daily", NOON + timedelta(seconds=1)).job_id("app"),
        Fire("mine.daily", NOON + timedelta(microseconds=1)).job_id("app"),
    ]
    assert len({fire.job_id("app"), *others}) == 5
    # It is the same wherever and whenever it is worked out.
    assert fire.job_id("app") == "job_019cc309-69e0-8b60-9287-1b92e3040f45"


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))
def test_an_envelope_says_which_fire_it_is_of(moment: datetime) -> None:
    envelope = schedule().envelope("app", moment)
    assert re.fullmatch(ID_PATTERN, envelope.id)
    assert re.fullmatch(r"job_.{8}-.{4}-8.{3}-[89ab].{3}-.{12}", envelope.id)
    assert Fire.of(Envelope.from_wire(envelope.to_wire())) == Fire("mine.daily", moment)
    later = schedule().envelope("app", moment + timedelta(milliseconds=1))
    assert later.id > envelope.id


@pytest.mark.parametrize("key", [None, "mine", "schedule:mine.daily", "schedule:a:soon"])
def test_other_jobs_are_of_no_fire(key: str | None) -> None:
    assert Fire.of(Envelope.of(task="text.chat", input="x", key=key)) is None
