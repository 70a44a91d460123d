"""When schedules fire: cron expressions, paces, and clocks that are changed twice a year."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from gptflow.cron import Cron
from gptflow.timetable import EPOCH, CronTimes, Every, Timetable, latest, moments

BERLIN = ZoneInfo("Europe/Berlin")


def times(cron: str, zone: str = "UTC") -> CronTimes:
    return CronTimes(Cron.parse(cron), ZoneInfo(zone))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def walls(timetable: CronTimes, day: str, last: str | None = None) -> list[str]:
    """What the clocks on the wall show at each fire of one local day, or of some."""
    start = datetime.fromisoformat(day).replace(tzinfo=timetable.zone)
    end = datetime.fromisoformat(last or day).replace(tzinfo=timetable.zone) + timedelta(days=1)
    fires = itertools.takewhile(
        lambda moment: moment < end.astimezone(UTC),
        moments(timetable, start.astimezone(UTC) - timedelta(microseconds=1)),
    )
    return [f"{moment.astimezone(timetable.zone):%H:%M%z}" for moment in fires]


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("*/5 * * * *", "2026-03-06T12:01:30", "2026-03-06T12:05"),
        ("*/5 * * * *", "2026-03-06T12:05:00", "2026-03-06T12:10"),
        ("*/5 * * * *", "2026-03-06T12:04:59.999999", "2026-03-06T12:05"),
        ("0 13 * * *", "2026-03-06T12:59:59", "2026-03-06T13:00"),
        ("0 13 * * *", "2026-03-06T13:00:00", "2026-03-07T13:00"),
        ("30 9 * * 1-5", "2026-03-06T12:00:00", "2026-03-09T09:30"),
        ("30 9 * * mon-fri", "2026-03-06T12:00:00", "2026-03-09T09:30"),
        ("0 0 * * 7", "2026-03-06T12:00:00", "2026-03-08T00:00"),
        ("0 0 * * sun", "2026-03-06T12:00:00", "2026-03-08T00:00"),
        ("0 22-2/2 * * *", "2026-03-06T22:00:00", "2026-03-07T00:00"),
        ("0 0 29 2 *", "2026-03-06T12:00:00", "2028-02-29T00:00"),
        ("0 0 29 feb mon", "2026-03-06T12:00:00", "2044-02-29T00:00"),
        ("0 9 13 * fri", "2026-03-14T12:00:00", "2026-11-13T09:00"),
        ("59 23 31 dec *", "2026-12-31T23:59:00", "2027-12-31T23:59"),
        ("0 0 31 * *", "2026-01-31T00:00:00", "2026-03-31T00:00"),
    ],
)
def test_a_cron_expression_fires_at_the_minutes_that_it_names(
    cron: str, after: str, due: str
) -> None:
    assert times(cron).next(utc(after)) == utc(due)


@pytest.mark.parametrize(
    ("cron", "complaint"),
    [
        ("", "0 fields"),
        ("every day", "2 fields"),
        ("* * * * * *", "6 fields"),
        ("99 * * * *", "'99' is no minute: 0 to 59"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of the month"),
        ("* * * 13 *", "'13' is no month: 1 to 12 or jan to dec"),
        ("* * * * 8", "'8' is no day of the week"),
        ("* * * * -1", "'' is no day of the week"),
        ("*/0 * * * *", "step of '*/0'"),
        ("5/15 * * * *", "'5-59/15'"),
        ("1,,2 * * * *", "'' is no minute"),
        ("² * * * *", "'²' is no minute"),
        ("0 0 31 2 *", r"none of its months \(2\) has a day 31"),
        ("0 0 31 feb,apr *", "never fire"),
        ("0 0 30,31 feb *", "never fire"),
    ],
)
def test_what_is_wrong_with_an_expression_is_named(cron: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("*", r"\*")):
        Cron.parse(cron)


_PARTS = (
    st.sampled_from(["*", "*/7", "0", "30", "5,55", "10-20/5", "58-3"]),
    st.sampled_from(["*", "*/6", "0", "23", "8-17", "22-2"]),
    st.sampled_from(["*", "1", "29", "31", "1-7", "*/10"]),
    st.sampled_from(["*", "2", "1,12", "feb-apr", "*/5"]),
    st.sampled_from(["*", "0", "6", "mon-fri", "fri-mon", "*/3"]),
)


@given(
    st.tuples(*_PARTS),
    st.datetimes(datetime(1999, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
)
def test_expressions_mean_what_they_mean_to_celery(parts: tuple[str, ...], after: datetime) -> None:
    text = " ".join(parts)
    try:
        theirs = crontab.from_string(text)
    except ValueError:
        with pytest.raises(ValueError, match="never fire"):
            Cron.parse(text)
        return
    ours = times(text).next(after)
    assert ours > after
    assert (ours.second, ours.microsecond) == (0, 0)
    assert ours.minute in theirs.minute
    assert ours.hour in theirs.hour
    assert ours.day in theirs.day_of_month
    assert ours.month in theirs.month_of_year
    assert ours.isoweekday() % 7 in theirs.day_of_week
    start, delta, _ = theirs.remaining_delta(after, tz=UTC)
    assert ours == (start + delta).astimezone(UTC).replace(second=0, microsecond=0)


@pytest.mark.parametrize(
    ("every", "after", "due"),
    [
        (1.0, "2026-03-06T12:00:00.999999", "2026-03-06T12:00:01"),
        (1.0, "2026-03-06T12:00:01", "2026-03-06T12:00:02"),
        (2.5, "2026-03-06T12:00:00", "2026-03-06T12:00:02.5"),
        (86_400.0, "2026-03-06T12:00:00", "2026-03-07T00:00:00"),
    ],
)
def test_a_pace_is_counted_from_1970(every: float, after: str, due: str) -> None:
    assert Every(timedelta(seconds=every)).next(utc(after)) == utc(due)


def test_a_time_that_the_clocks_leave_out_fires_once() -> None:
    # 2026-03-29: at 2:00 the clocks of Berlin are put forward to 3:00.
    assert walls(times("30 2 * * *", "Europe/Berlin"), "2026-03-28", "2026-03-30") == [
        "02:30+0100",
        "03:30+0200",
        "02:30+0200",
    ]
    assert walls(times("15,45 2,3 * * *", "Europe/Berlin"), "2026-03-29") == [
        "03:15+0200",
        "03:45+0200",
    ]


def test_a_time_that_the_clocks_show_twice_fires_the_first_time() -> None:
    # 2026-10-25: at 3:00 the clocks of Berlin are put back to 2:00.
    assert walls(times("30 2 * * *", "Europe/Berlin"), "2026-10-24", "2026-10-26") == [
        "02:30+0200",
        "02:30+0200",
        "02:30+0100",
    ]
    # Also for one who asks between the two.
    between = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1)
    found = times("30 2 * * *", "Europe/Berlin").next(between.astimezone(UTC))
    assert found == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN).astimezone(UTC)


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25", "2026-07-01"])
def test_an_expression_for_every_hour_keeps_its_pace(day: str) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=BERLIN).astimezone(UTC)
    fires = list(itertools.islice(moments(times("*/15 * * * *", "Europe/Berlin"), start), 200))
    assert {later - earlier for earlier, later in itertools.pairwise(fires)} == {
        timedelta(minutes=15)
    }


def test_other_changes_of_clocks() -> None:
    # By half an hour, at midnight, and by a whole day that Samoa did not have.
    assert walls(times("15 2 * * *", "Australia/Lord_Howe"), "2026-10-04") == ["02:45+1100"]
    assert walls(times("0 0 * * *", "America/Havana"), "2026-03-08", "2026-03-09") == [
        "01:00-0400",
        "00:00-0400",
    ]
    samoa = times("0 12 * * *", "Pacific/Apia")
    assert len(walls(samoa, "2011-12-28", "2012-01-01")) == 4


@given(
    cron=st.sampled_from(["30 2 * * *", "0 * * * *", "*/20 1-3 * * *", "0 0 1 * *", "59 23 * * 6"]),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]
    ),
    after=st.datetimes(datetime(2009, 1, 1), datetime(2031, 1, 1), timezones=st.just(UTC)),
    back=st.integers(1, 40 * 86_400),
)
def test_what_is_next_does_not_depend_on_when_one_asks(
    cron: str, zone: str, after: datetime, back: int
) -> None:
    timetable: Timetable = times(cron, zone)
    due = timetable.next(after)
    fires = itertools.takewhile(
        lambda moment: moment <= due, moments(timetable, after - timedelta(seconds=back))
    )
    assert next(moment for moment in fires if moment > after) == due


@given(
    after=st.integers(0, 10**6),
    length=st.integers(0, 10**6),
    timetable=st.sampled_from(
        [times("*/7 * * * *"), times("0 4 * * *"), Every(timedelta(seconds=977))]
    ),
)
def test_the_latest_fire_is_the_last_of_all(after: int, length: int, timetable: Timetable) -> None:
    start = EPOCH + timedelta(seconds=after)
    end = start + timedelta(seconds=length)
    fires = list(itertools.takewhile(lambda moment: moment <= end, moments(timetable, start)))
    assert latest(timetable, start, end) == (fires[-1] if fires else None)


def test_the_latest_fire_of_years_is_found_at_once() -> None:
    pace = Every(timedelta(seconds=1))
    assert latest(pace, utc("1990-01-01"), utc("2026-03-06T12:00:00.5")) == utc(
        "2026-03-06T12:00:00"
    )
