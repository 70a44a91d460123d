"""The detector on series whose truth is known."""

from gptflow.monitoring.surge import HOUR, Counts, Evidence, Reading, Rule, firing, read, weigh
from gptflow.monitoring.tracking import Panel, Signal

WEEKS = 168


def quiet(hours: int) -> tuple[list[int], list[int]]:
    """Four negatives of thirteen posts, give or take one, and twice that by day."""
    negative = [(8 if 8 <= hour % 24 < 20 else 4) + (hour * 7919) % 3 - 1 for hour in range(hours)]
    return negative, [y + (18 if 8 <= hour % 24 < 20 else 9) for hour, y in enumerate(negative)]


def watch(negative: list[int], total: list[int], start: int) -> list[Signal[str]]:
    panel = Panel({"topic": Counts(negative, total)}, {}, Rule())
    return [s for end in range(start + 1, len(negative) + 1) for s in panel.step(end)]


def test_less_than_two_weeks_is_insufficient_history() -> None:
    counts = Counts(*quiet(2 * WEEKS))
    assert read(counts, 2 * WEEKS - 1, Rule(), {}) == []
    assert read(counts, 2 * WEEKS, Rule(), {})


def test_a_quiet_series_stays_quiet() -> None:
    negative, total = quiet(6 * WEEKS)
    assert watch(negative, total, 0) == []


def test_a_day_that_is_always_busy_is_no_surge() -> None:
    negative, total = quiet(6 * WEEKS)
    for hour in range(10, len(negative), 24):
        negative[hour] *= 5
        total[hour] *= 5
    assert watch(negative, total, 3 * WEEKS) == []


def test_a_surge_opens_escalates_and_resolves() -> None:
    negative, total = quiet(6 * WEEKS)
    start = 5 * WEEKS + 10
    for hour in range(start, start + 4):
        negative[hour] += 30
        total[hour] += 30
    signals = watch(negative, total, 3 * WEEKS)
    assert [signal.change for signal in signals] == ["opened", "escalated", "resolved"]
    assert [signal.reading.end for signal in signals[:2]] == [start + 1, start + 2]
    assert signals[0].leg == "volume_and_share"


def test_a_rise_in_all_posts_alike_is_no_surge_of_negatives() -> None:
    negative, total = quiet(6 * WEEKS)
    start = 5 * WEEKS + 10
    for hour in range(start, start + 6):
        negative[hour] = round(negative[hour] * 2.2)
        total[hour] = round(total[hour] * 2.2)
    counts = Counts(negative, total)
    reading = read(counts, start + 1, Rule(), {})[0]
    assert reading.p_volume < 1e-3
    assert reading.p_share > 0.05


def test_few_negatives_never_fire() -> None:
    negative, total = [0] * (5 * WEEKS), [1] * (5 * WEEKS)
    negative[-1], total[-1] = 9, 9
    assert watch(negative, total, 3 * WEEKS) == []
    negative[-1], total[-1] = 12, 12
    assert [signal.change for signal in watch(negative, total, 3 * WEEKS)] == ["opened"]


def test_a_sparse_series_is_read_in_wider_windows() -> None:
    negative = [int(hour % 3 == 0) for hour in range(5 * WEEKS)]
    counts = Counts(negative, [2] * len(negative))
    assert {reading.width for reading in read(counts, len(counts), Rule(), {})} == {24}
    hourly = Counts(*quiet(5 * WEEKS))
    assert [reading.width for reading in read(hourly, 5 * WEEKS, Rule(), {})] == [6, 24]


def test_what_lies_under_an_alert_teaches_nothing() -> None:
    negative, total = quiet(6 * WEEKS)
    end = 5 * WEEKS + 12
    before = read(Counts(negative, total), end, Rule(), {})[0].baseline
    for hour in range(end - WEEKS - 3, end - WEEKS + 3):
        negative[hour] += 100
        total[hour] += 100
    dirty = Counts(negative, total)
    assert read(dirty, end, Rule(), {})[0].baseline.variance > 3 * before.variance
    dirty.exclude(end - WEEKS - 3, end - WEEKS + 3)
    clean = read(dirty, end, Rule(), {})[0].baseline
    assert clean.mean == before.mean or abs(clean.mean - before.mean) < 1


def test_many_watched_series_ask_for_more_evidence() -> None:
    reading = read(Counts(*quiet(5 * WEEKS)), 5 * WEEKS, Rule(), {})[0]
    evidence = {"topic": Evidence(reading, 5e-5, 5e-5, 0.0)}
    assert firing(evidence, 1, Rule(alpha=1e-4)) == {"topic": "volume_and_share"}
    assert firing(evidence, 20, Rule(alpha=1e-4)) == {}
    together = {name: Evidence(reading, 5e-5, 5e-5, 0.0) for name in range(20)}
    assert len(firing(together, 20, Rule(alpha=1e-4))) == 20


def test_a_slow_build_up_fires_by_its_sum() -> None:
    reading = read(Counts(*quiet(5 * WEEKS)), 5 * WEEKS, Rule(), {})[0]
    evidence = {"topic": Evidence(reading, 0.01, 0.01, 12.0)}
    assert firing(evidence, 1, Rule(cusum_limit=10.0)) == {"topic": "build_up"}
    assert firing(evidence, 1, Rule(cusum_limit=15.0)) == {}


def test_weighing_asks_for_volume_and_ratio() -> None:
    baseline = read(Counts(*quiet(5 * WEEKS)), 5 * WEEKS, Rule(), {})[0].baseline

    def reading(negative: int) -> Reading:
        return Reading(end=0, width=1, negative=negative, total=negative, baseline=baseline)

    assert weigh([reading(9)], 0.0, Rule()) is None
    assert weigh([reading(int(2 * baseline.mean) - 1)], 0.0, Rule()) is None
    assert weigh([reading(int(2 * baseline.mean) + 10)], 0.0, Rule()) is not None


def test_buckets_may_be_shorter_than_an_hour() -> None:
    counts = Counts([1] * 10, [2] * 10, bucket=HOUR // 4)
    assert counts.widths == (1, 24, 96)
