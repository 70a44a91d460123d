"""Beats as processes: killed, stopped, and without Redis for a while; each fire is one job."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.schedule_ledger import ScheduleLedger, ScheduleState
from gptflow.schedule import Fire

Eventually = Callable[..., None]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Desk:
    """Beats of one application, and what they have fired."""

    def __init__(self, start: Callable[..., Any], eventually: Eventually, url: str, app: str):
        self.app = app
        self.url = url
        self.flow = Client(settings=config.load(redis_url=url, app=app))
        self.ledger = ScheduleLedger(self.flow.transport.store)  # type: ignore[attr-defined]
        self._start = start
        self._eventually = eventually
        self.beats: list[Any] = []

    def start(self) -> Any:
        beat = self._start("gptflow_workers.beat", app=self.app, redis_url=self.url)
        self.beats.append(beat)
        return beat

    def start_ready(self) -> Any:
        beat = self.start()
        self._eventually(lambda: "Ready: " in beat.output, 60)
        return beat

    def kill(self, beat: Any) -> None:
        beat.kill()
        self.beats.remove(beat)

    def state(self, name: str) -> ScheduleState:
        return self.ledger.states([f"testbed.{name}"])[f"testbed.{name}"]

    def await_fires(self, name: str, count: int) -> None:
        """Wait until so many more have been sent."""
        until = self.state(name).fired + count
        self._eventually(lambda: self.state(name).fired >= until, 60)

    def fires(self, name: str) -> list[int]:
        """The seconds since 1970 of all fires sent, one for each job that there is."""
        store = self.flow.transport.store  # type: ignore[attr-defined]
        found = []
        for job in self.flow.transport.jobs(None, 10_000):
            key = store.client.hget(store.keys.job(job.id), "idem")
            if match := re.search(rf"schedule:testbed\.{name}:(\S+)", key):
                moment = datetime.fromisoformat(match[1])
                assert Fire(f"testbed.{name}", moment).job_id(self.app) == job.id
                found.append(int(moment.timestamp()))
        return sorted(found)

    def leader(self) -> Any:
        """The beat that sent the newest fire."""

        def newest(beat: Any) -> str:
            return max(re.findall(r"fire (\S+) is job", beat.output), default="")

        return max(self.beats, key=newest)

    def gptflow(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GPTFLOW_")}
        environment |= {
            "GPTFLOW_APP": self.app,
            "GPTFLOW_REDIS_URL": self.url,
            "GPTFLOW_PLUGINS": "text,testbed",
        }
        return subprocess.run(
            [sys.executable, "-m", "gptflow", *args],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def open_desk(
    start: Callable[..., Any],
    eventually: Eventually,
    server: EmbeddedServer,
    testbed: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Desk]]:
    """Declare the test plugin's schedules, and open a desk."""
    desks: list[Desk] = []
    path = os.pathsep.join(filter(None, (str(testbed), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)

    def open_(schedules: dict[str, Any], url: str = server.url) -> Desk:
        monkeypatch.setenv("TESTBED_SCHEDULES", json.dumps(schedules))
        app = f"desk-{abs(hash(request.node.name)) % 10**8}"
        desks.append(Desk(start, eventually, url, app))
        return desks[-1]

    yield open_
    for desk in desks:
        for beat in desk.beats:
            beat.kill()
        desk.flow.close()


def every_second(fires: list[int]) -> bool:
    return fires == list(range(fires[0], fires[-1] + 1))


def test_three_beats_of_which_one_is_killed_again_and_again_miss_nothing(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk({"tick": {"every": 1.0}})
    for _ in range(3):
        desk.start_ready()
    desk.await_fires("tick", 2)
    for _ in range(6):
        desk.kill(desk.leader())
        desk.start()
        desk.await_fires("tick", 3)
    fires = desk.fires("tick")
    assert len(fires) >= 20
    assert every_second(fires)
    assert desk.state("tick").fired == len(fires)


def test_what_came_while_redis_was_away_is_sent_when_it_is_back(
    open_desk: Callable[..., Desk], eventually: Eventually, tmp_path: Path, free_port: int
) -> None:
    server = EmbeddedServer(tmp_path / "data", port=free_port).start()
    try:
        desk = open_desk({"tick": {"every": 1.0, "policy": "skip"}}, server.url)
        beats = [desk.start_ready() for _ in range(2)]
        desk.await_fires("tick", 2)
        server.stop()
        gone = time.time()
        eventually(lambda: all("Fires wait" in beat.output for beat in beats), 30)
        eventually(lambda: time.time() > gone + 4)
        server.start()
        eventually(lambda: all("Redis answers again" in beat.output for beat in beats), 30)
        desk.await_fires("tick", 2)
        fires = desk.fires("tick")
        assert fires[-1] - fires[0] >= 6
        assert every_second(fires)
        assert all("Traceback" not in beat.output for beat in beats)
        assert all(beat.terminate() == 0 for beat in beats)
    finally:
        server.stop()


def test_what_came_while_no_beat_ran_goes_by_the_policy(
    open_desk: Callable[..., Desk], eventually: Eventually
) -> None:
    policies = ("skip", "last", "all")
    desk = open_desk({policy: {"every": 1.0, "policy": policy} for policy in policies})
    desk.start_ready()
    for policy in policies:
        desk.await_fires(policy, 1)
    desk.kill(desk.beats[0])
    before = {policy: desk.fires(policy)[-1] for policy in policies}
    gone = time.time()
    eventually(lambda: time.time() > gone + 3)
    back = int(time.time())
    desk.start_ready()
    for policy in policies:
        desk.await_fires(policy, 3)
        first, *rest = [fire for fire in desk.fires(policy) if fire > before[policy]]
        assert every_second([first, *rest])
        # Which is the last one missed depends on how soon the new one was there.
        assert first == before[policy] + 1 if policy == "all" else first >= back


def test_a_paused_schedule_rests_until_it_is_resumed(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk({"tick": {"every": 1.0}, "tock": {"every": 1.0, "policy": "all"}})
    desk.start_ready()
    desk.await_fires("tock", 1)
    done = desk.gptflow("schedule", "pause", "testbed.tock")
    assert done.stdout == "Schedule testbed.tock is paused.\n"
    assert desk.gptflow("schedule", "pause", "testbed.tock").stdout.endswith("already.\n")
    before = desk.fires("tock")
    desk.await_fires("tick", 3)
    assert desk.fires("tock") == before
    [tick, tock] = json.loads(desk.gptflow("schedule", "list", "--json").stdout)
    assert (tick["paused"], tock["paused"], tock["next"]) == (False, True, None)
    assert tock["last_fire"] is not None
    done = desk.gptflow("schedule", "resume", "testbed.tock", "--json")
    assert json.loads(done.stdout) == {"name": "testbed.tock", "paused": False, "changed": True}
    desk.await_fires("tock", 2)
    after = [fire for fire in desk.fires("tock") if fire not in before]
    assert after[0] >= before[-1] + 3
    assert every_second(after)
    assert every_second(desk.fires("tick"))


def test_the_list_shows_the_last_fire_and_its_job(
    open_desk: Callable[..., Desk], eventually: Eventually
) -> None:
    desk = open_desk({"tick": {"every": 2.0, "overlap": "skip"}})
    desk.start_ready()
    # It may have fired already, and does not again while that job waits.
    eventually(lambda: desk.state("tick").fired == 1, 60)
    [row] = json.loads(desk.gptflow("schedule", "list", "--json").stdout)
    assert (row["name"], row["fired"], row["state"]) == ("testbed.tick", 1, "queued")
    moment = datetime.fromisoformat(row["last_fire"])
    assert row["job"] == Fire("testbed.tick", moment).job_id(desk.app)
    assert row["job"] in desk.gptflow("schedule", "list").stdout
    assert desk.flow.cancel(row["job"])


def test_a_schedule_is_fired_by_hand(
    open_desk: Callable[..., Desk], start_worker: Callable[..., Any]
) -> None:
    desk = open_desk({"yearly": {"cron": "0 0 1 1 *", "input": {"value": "by hand"}}})
    start_worker(app=desk.app)
    done = desk.gptflow("schedule", "run", "testbed.yearly", "--json")
    assert done.returncode == 0, done.stderr
    fired = json.loads(done.stdout)
    assert desk.flow.job(fired["job"]).result(30) == {"value": "by hand"}
    moment = datetime.fromisoformat(fired["fire"])
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert fired["job"] == Fire("testbed.yearly", moment).job_id(desk.app)
    again = desk.gptflow("schedule", "run", "testbed.yearly").stdout.strip()
    assert again != fired["job"]
    assert desk.flow.job(again).wait(30).ok


def test_a_running_job_is_cancelled_for_the_fire_that_replaces_it(
    open_desk: Callable[..., Desk], start_worker: Callable[..., Any], eventually: Eventually
) -> None:
    hang = {"task": "bed.sleep", "input": {"value": 600}}
    desk = open_desk(
        {
            "new": {"every": 3.0, "overlap": "replace"} | hang,
            "one": {"every": 1.0, "overlap": "skip"} | hang,
        }
    )
    start_worker(app=desk.app)
    desk.start_ready()
    desk.await_fires("new", 1)
    first = desk.flow.job(str(desk.state("new").job))
    eventually(lambda: first.state == "running", 30)
    result = first.wait(30)
    assert (result.state, result.error and result.error.code) == ("cancelled", "GF503")
    second = desk.flow.job(str(desk.state("new").job))
    assert second.id != first.id
    eventually(lambda: second.state == "running", 30)
    # Beside it, what skips has one job that runs, and lets the rest go.
    assert desk.state("one").fired == 1
    assert desk.state("one").skipped >= 1
    desk.beats[0].kill()
    for name in ("new", "one"):
        desk.flow.cancel(str(desk.state(name).job))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_beat_stops_within_a_second(
    open_desk: Callable[..., Desk], eventually: Eventually, number: int
) -> None:
    desk = open_desk({"tick": {"every": 1.0, "input": {"value": "a secret"}}})
    beat = desk.start_ready()
    # A beat that is told to stop between the fire and its line leaves the line out.
    fired = re.compile(r"Schedule testbed\.tick: fire \S+Z is job job_\S+\.")
    eventually(lambda: fired.search(beat.output) is not None, 60)
    started = time.monotonic()
    beat.popen.send_signal(number)
    assert beat.popen.wait(10) == 0
    assert time.monotonic() - started < 1
    assert beat.output.rstrip().endswith("Stopped.")
    assert "a secret" not in beat.output
    assert "Traceback" not in beat.output
