"""Schedules against a real Valkey: beats in this process, whose time the test turns."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptflow import config
from gptflow.client import Client
from gptflow.errors import BrokerUnavailable
from gptflow.queue import scripts
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.schedule import Beat
from gptflow.queue.schedule_ledger import ScheduleLedger
from gptflow.result import Result
from gptflow.schedule import Fire, Schedule
from gptflow.transport import JobRecord

START = datetime(2026, 3, 6, 12, 0, tzinfo=UTC)
CLOCK = "local function now() return tonumber(call('GET', P .. 'clock')) end"
numbers = itertools.count(1)


@pytest.fixture
def turned_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts that take the time from a key."""
    scripts.source.cache_clear()
    scripts._hash.cache_clear()
    original = scripts.source.__wrapped__
    real = original("reap")
    start = real.index("local function now()")
    end = real.index("end\n", start) + 3

    def source(name: scripts.Name) -> str:
        return original(name).replace(real[start:end], CLOCK)

    monkeypatch.setattr(scripts, "source", source)
    yield
    scripts._hash.cache_clear()


class World:
    """A server, its time, and the beats that run on it; times are seconds after noon."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.app = f"world-{next(numbers)}"
        self.flow = Client(settings=config.load(redis_url=server.url, app=self.app))
        self.store = self.flow.transport.store  # type: ignore[attr-defined]
        self.ledger = ScheduleLedger(self.store)
        self.now = 0.0
        self.away = False
        self.schedules: dict[str, Schedule] = {}
        self.beats: list[Beat] = []
        self.pass_to(0)

    def declare(self, name: str = "bed.tick", every: float = 10, **options: Any) -> Schedule:
        fields = {"task": "bed.echo", "input": {"value": 1}, "plugin": "bed", "name": name}
        if "cron" not in options:
            fields["every"] = every
        self.schedules[name] = Schedule(**fields | options)
        return self.schedules[name]

    def start(self) -> Beat:
        world = self

        class Ledger(ScheduleLedger):
            """One that does not answer while Redis is away."""

            def watch(self, *args: Any, **options: Any) -> Any:
                if world.away:
                    raise BrokerUnavailable("Redis does not answer.")
                return super().watch(*args, **options)

        pack = self.flow.transport._pack  # type: ignore[attr-defined]
        clock: Callable[[], float] = lambda: world.now  # noqa: E731
        beat = Beat(dict(self.schedules), Ledger(self.store), pack, self.app, clock)
        self.beats.append(beat)
        beat.round()
        return beat

    def pass_to(self, seconds: float) -> None:
        self.now = float(seconds)
        self.store.client.set(
            f"{self.store.keys.prefix}clock", (START + timedelta(seconds=seconds)).timestamp()
        )

    def run_to(self, seconds: float, every: float = 1.0) -> None:
        """Let time pass, with a round of each beat at every tick."""
        while self.now < seconds:
            self.pass_to(min(self.now + every, seconds))
            for beat in self.beats:
                beat.round()

    def kill_all(self) -> None:
        self.beats.clear()

    def fires(self, name: str = "bed.tick") -> list[float]:
        """The fires that have a job, in the order in which they were sent."""
        found = []
        for job in reversed(self.flow.transport.jobs(None, 10_000)):
            fire = self.fire_of(job)
            if fire.schedule == name:
                found.append((fire.time - START).total_seconds())
        return found

    def fire_of(self, job: JobRecord) -> Fire:
        key = self.store.client.hget(self.store.keys.job(job.id), "idem").partition("schedule:")[2]
        name, _, time = key.partition(":")
        fire = Fire(name, datetime.fromisoformat(time))
        assert fire.job_id(self.app) == job.id
        return fire

    def job(self, seconds: float, name: str = "bed.tick") -> JobRecord:
        fire = Fire(name, START + timedelta(seconds=seconds))
        return self.flow.transport.job(fire.job_id(self.app))

    def end(self, seconds: float) -> None:
        """Let the job of a fire end well."""
        job = self.job(seconds)
        self.flow.transport.store.end(  # type: ignore[attr-defined]
            Result(id=job.id, task=job.task, state="done", output={})
        )


@pytest.fixture
def world(server: EmbeddedServer, turned_clock: None) -> Iterator[World]:
    world = World(server)
    yield world
    world.flow.close()


def test_each_fire_is_one_job_however_many_beats_there_are(world: World) -> None:
    world.declare()
    for _ in range(3):
        world.start()
    world.run_to(60)
    assert world.fires() == [10, 20, 30, 40, 50, 60]
    assert world.ledger.states(["bed.tick"])["bed.tick"].fired == 6


def test_a_fires_job_says_so_and_is_what_was_declared(world: World) -> None:
    world.declare(tenant="acme", job_class="batch", task="bed.sleep")
    world.start()
    world.run_to(10)
    record = world.job(10)
    assert (record.task, record.tenant, record.job_class) == ("bed.sleep", "acme", "batch")
    wire = world.store.client.hget(world.store.keys.job(record.id), "wire")
    assert '"schedule:bed.tick:2026-03-06T12:00:10Z"' in wire
    state = world.ledger.states(["bed.tick"])["bed.tick"]
    assert (state.job, state.fire) == (record.id, START + timedelta(seconds=10))


def test_beats_come_back_when_the_next_fire_is_due(world: World) -> None:
    world.declare(every=10)
    beat = world.start()
    world.pass_to(7.75)
    assert beat.round() == pytest.approx(2.25)
    world.pass_to(10)
    assert beat.round() == pytest.approx(5)


def test_a_cron_expression_fires_by_the_clocks_of_its_zone(world: World) -> None:
    # 12:00 UTC is 7:00 in New York, two days before its clocks are put forward.
    world.declare(cron="1 7 * * *", timezone="America/New_York")
    world.start()
    world.run_to(4 * 86_400, every=1800)
    assert world.fires() == [60, 86_460, *(86_400 * day - 3540 for day in (2, 3, 4))]


def test_what_came_while_redis_was_away_is_sent_when_it_is_back(world: World) -> None:
    world.declare(policy="skip")
    for _ in range(2):
        world.start()
    world.run_to(20)
    world.away = True
    world.run_to(75)
    assert world.fires() == [10, 20]
    world.away = False
    world.start()  # one that knows nothing of it comes first
    world.beats.reverse()
    world.run_to(80)
    assert world.fires() == [10, 20, 30, 40, 50, 60, 70, 80]


@pytest.mark.parametrize(
    ("options", "made_up"),
    [
        ({"policy": "skip"}, []),
        ({"policy": "last"}, [90]),
        ({"policy": "all"}, [20, 30, 40, 50, 60, 70, 80, 90]),
        ({"policy": "all", "catchup": 35}, [70, 80, 90]),
        ({"policy": "last", "catchup": 3}, []),
    ],
)
def test_what_came_while_no_beat_ran_goes_by_the_policy(
    world: World, options: dict[str, Any], made_up: list[float]
) -> None:
    world.declare(**options)
    world.start()
    world.run_to(15)
    world.kill_all()
    world.pass_to(97)
    for _ in range(2):
        world.start()
    world.run_to(120)
    assert world.fires() == [10, *made_up, 100, 110, 120]


def test_all_of_a_long_absence_is_made_up_for_in_bursts(world: World) -> None:
    world.declare(every=1, policy="all")
    world.declare("bed.other", every=10)
    world.start()
    world.kill_all()
    world.pass_to(350)
    world.start()
    assert world.fires() == list(range(1, 101))
    world.run_to(355)
    assert world.fires() == list(range(1, 356))
    assert world.fires("bed.other") == [350]


def test_a_schedule_that_is_new_or_declared_anew_begins_then(world: World) -> None:
    world.declare(policy="all")
    world.pass_to(35)
    world.start()
    world.run_to(40)
    world.kill_all()
    world.declare(policy="all", every=15)
    world.pass_to(95)
    world.start()
    world.run_to(105)
    assert world.fires() == [40, 105]


def test_a_paused_schedule_rests_and_goes_on_without_what_it_missed(world: World) -> None:
    world.declare(policy="all")
    world.start()
    world.run_to(10)
    assert world.ledger.pause("bed.tick", True)
    assert not world.ledger.pause("bed.tick", True)
    world.run_to(35)
    world.start()
    assert world.ledger.pause("bed.tick", False)
    assert not world.ledger.pause("bed.tick", False)
    world.run_to(50)
    assert world.fires() == [10, 40, 50]


def test_fires_overlap_where_that_is_allowed(world: World) -> None:
    world.declare(overlap="allow")
    world.start()
    world.run_to(30)
    assert world.fires() == [10, 20, 30]


def test_a_fire_is_skipped_while_an_earlier_one_has_not_ended(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.declare(overlap="skip")
    for _ in range(2):
        world.start()
    world.run_to(35)
    world.end(10)
    world.run_to(40)
    assert world.fires() == [10, 40]
    assert world.ledger.states(["bed.tick"])["bed.tick"].skipped == 2
    [first, *_] = [m for m in caplog.messages if "skipped" in m]
    assert "bed.tick" in first
    assert "2026-03-06T12:00:20Z" in first
    assert world.job(10).id in first


def test_fires_queue_for_the_job_of_an_earlier_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.declare(overlap="queue", policy="skip")
    for _ in range(2):
        world.start()
    world.run_to(35)
    assert world.fires() == [10]
    assert len([m for m in caplog.messages if "waits for job" in m]) == 2  # once a beat
    world.end(10)
    world.run_to(37)
    assert world.fires() == [10, 20]
    # Those who come later know that it was held back, not missed.
    world.kill_all()
    world.pass_to(38)
    world.start()
    world.end(20)
    world.run_to(39)
    assert world.fires() == [10, 20, 30]
    world.end(30)
    world.run_to(40)
    assert world.fires() == [10, 20, 30, 40]


def test_a_fire_replaces_the_job_of_an_earlier_one(world: World) -> None:
    world.declare(overlap="replace")
    for _ in range(2):
        world.start()
    world.run_to(10)
    ledger = RedisLedger(world.store, lease=15, dead_ttl=60)
    ledger.claim(world.job(10).id, "worker", 1)
    world.run_to(20)
    assert (world.job(10).state, world.job(20).state) == ("cancelled", "queued")
    result = world.flow.job(world.job(10).id).wait(1)
    assert result.error is not None
    assert result.error.code == "GF503"
    assert "the next fire of its schedule replaced it" in result.error.message
    world.run_to(30)
    assert [world.job(s).state for s in (10, 20, 30)] == ["cancelled", "cancelled", "queued"]
    world.end(30)
    world.run_to(40)
    assert [world.job(s).state for s in (30, 40)] == ["done", "queued"]
    depth = world.store.client.hgetall(world.store.keys.depth)
    assert depth == {"standard": "1", "standard/default": "1"}


def test_a_full_queue_delays_fires_and_loses_none(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.declare()
    world.store.client.hset(world.store.keys.policy, "limit:standard", 2)
    world.start()
    world.run_to(45)
    assert world.fires() == [10, 20]
    assert len([m for m in caplog.messages if "queue is full" in m]) == 1
    for second in (10, 20):
        world.end(second)
    world.run_to(50)
    assert world.fires() == [10, 20, 30, 40]
    for second in (30, 40):
        world.end(second)
    world.run_to(56)
    assert world.fires() == [10, 20, 30, 40, 50]


def test_a_fire_whose_mark_was_lost_is_the_same_job(world: World) -> None:
    world.declare()
    world.start()
    world.run_to(20)
    # As when the server lost its last second, of this key only.
    world.store.client.hset(
        world.store.keys.schedule("bed.tick"), "mark", f"{START.timestamp() + 9:.6f}"
    )
    world.run_to(30)
    assert world.fires() == [10, 20, 30]


def test_a_beat_that_dies_between_any_two_steps_loses_nothing(world: World) -> None:
    world.declare(every=1, policy="all")
    survivor = world.start()
    settle = ScheduleLedger.settle

    class Killed(BaseException):
        pass

    for second in range(1, 30):
        beat = world.start()
        world.pass_to(second)

        def die(self: ScheduleLedger, *args: Any, before: bool = second % 2 == 0) -> Any:
            if before:
                raise Killed
            settle(self, *args)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ScheduleLedger, "settle", die)
            with pytest.raises(Killed):
                beat.round()
        world.beats.remove(beat)
        survivor.round()
    assert world.fires() == list(range(1, 30))


@pytest.mark.parametrize("policy", ["skip", "all"])
@given(
    actions=st.lists(
        st.sampled_from(["start", "kill", "away", "back", "turn", "wait", "wait"]), max_size=40
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_each_fire_is_one_job_and_none_is_missed(
    server: EmbeddedServer, turned_clock: None, policy: str, actions: list[str]
) -> None:
    world = World(server)
    world.declare(every=1, policy=policy)
    world.start()
    for action in actions:
        if action == "start" and len(world.beats) < 4:
            world.start()
        elif action == "kill" and policy == "all":
            world.beats[:1] = []
        elif action == "kill" and len(world.beats) > 1 and not world.away:
            world.beats.pop(0)
        elif action == "turn":
            world.beats.reverse()
        elif action in ("away", "back"):
            world.away = action == "away"
        world.run_to(world.now + 0.7, every=0.35)
    world.away = False
    world.start()
    world.run_to(world.now + 11)
    # Twenty times 0.7 is a little less than 14.
    assert world.fires() == list(range(1, int(world.now + 1e-6) + 1))
    world.flow.close()


def test_the_log_says_what_is_fired_and_not_on_what(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.declare(input={"value": "a secret"})
    world.start()
    world.run_to(10)
    assert f"fire 2026-03-06T12:00:10Z is job {world.job(10).id}" in caplog.text
    assert "a secret" not in caplog.text
