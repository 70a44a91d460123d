"""The ledger's scripts against a model of them in Python, under random calls in random order.

The model says what state each job is in and what each call answers; the server's clock is
replaced with one that the test turns.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gptflow.envelope import Envelope, new_id
from gptflow.queue import embedded, scripts
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.keys import CLASSES
from gptflow.queue.ledger import Claim
from gptflow.queue.payload import pack
from gptflow.queue.records import Ending
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.redis_store import RedisStore
from gptflow.result import TERMINAL, Result

LEASE = 10.0
PATIENCE = 5.0
TTL = 100_000
START = 1_000_000.0

CLOCK = "local function now() return tonumber(call('GET', P .. 'clock')) end"

pytestmark = pytest.mark.timeout(600)


@dataclasses.dataclass
class Model:
    """A job as the model has it."""

    id: str
    job_class: str
    tenant: str
    plugin: str
    state: str = "queued"
    place: str = "ready"
    since: float = 0.0
    deadline: float | None = None
    fence: int = 0
    attempt: int = 0
    crashes: int = 0

    def line_up(self) -> None:
        self.place = "suspects" if self.crashes >= 2 else "ready"


class Ledger(RuleBasedStateMachine):
    """Random producers, workers and reapers."""

    url: str
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.store = RedisStore(self.url, "model", TTL)
        self.store.client.flushdb()
        self.ledger = RedisLedger(self.store, lease=LEASE, dead_ttl=TTL)
        self.now = START
        self.jobs: dict[str, Model] = {}
        self.by_key: dict[tuple[str, str, str], str] = {}
        self.deliveries = 0
        self._set_clock()

    def teardown(self) -> None:
        self.ledger.close()
        self.store.close()

    def _set_clock(self) -> None:
        self.store.client.set(f"{self.store.keys.prefix}clock", self.now)

    def _due(self) -> None:
        """What every call that looks for delayed jobs does first."""
        for job in self.jobs.values():
            if job.state == "queued" and job.place == "delayed" and job.since <= self.now:
                job.line_up()

    def _some(self, data: st.DataObject, *states: str) -> Model | None:
        found = sorted(job.id for job in self.jobs.values() if job.state in states or not states)
        return self.jobs[data.draw(st.sampled_from(found))] if found else None

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._set_clock()

    @rule(
        job_class=st.sampled_from(CLASSES),
        tenant=st.sampled_from("ab"),
        plugin=st.sampled_from("pq"),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        delay=st.sampled_from([None, None, 4.0]),
        deadline=st.sampled_from([None, None, None, 8.0]),
    )
    def enqueue(
        self,
        job_class: Any,
        tenant: str,
        plugin: str,
        key: str | None,
        delay: float | None,
        deadline: float | None,
    ) -> None:
        envelope = Envelope(
            id=new_id(),
            task=f"{plugin}.task",
            input={"x": 1},
            tenant=tenant,
            job_class=job_class,
            key=key,
            not_before=None if delay is None else self.now + delay,
            deadline=None if deadline is None else self.now + deadline,
        )
        packed = pack(envelope, reference="", inline=10_000, limit=10_000)
        got = self.store.submit(packed)
        whose = (tenant, envelope.task, key or "")
        if key is not None and whose in self.by_key:
            assert got == self.by_key[whose]
            return
        assert got == envelope.id
        assert self.store.submit(packed) == got, "the same call again is the same job"
        if key is not None:
            self.by_key[whose] = got
        self.jobs[got] = Model(
            id=got,
            job_class=job_class,
            tenant=tenant,
            plugin=plugin,
            deadline=envelope.deadline,
            place="delayed" if delay else "ready",
            since=self.now + (delay or 0),
        )

    @rule(credit=st.integers(1, 6))
    def feed(self, credit: int) -> None:
        self._due()
        ready = [j for j in self.jobs.values() if j.state == "queued" and j.place == "ready"]
        in_hand = sum(j.state == "queued" and j.place == "fed" for j in self.jobs.values())
        before = set(self.store.client.zrange(f"{self.store.keys.prefix}fed", 0, -1))
        fed = self.ledger.feed(credit, 0)
        after = set(self.store.client.zrange(f"{self.store.keys.prefix}fed", 0, -1))
        assert fed.jobs == max(0, min(credit - in_hand, len(ready))) == len(after - before)
        assert fed.more == (len(ready) > fed.jobs)
        for job_id in after - before:
            job = self.jobs[job_id]
            assert (job.state, job.place) == ("queued", "ready")
            job.place, job.since = "fed", self.now

    @rule(target=claims, data=st.data())
    def claim(self, data: st.DataObject) -> Claim | None:
        job = self._some(data)
        if job is None:
            return None
        self.deliveries += 1
        got = self.ledger.claim(job.id, "worker", self.deliveries)
        if job.state == "running" or (
            job.place in ("delayed", "suspects") and job.state == "queued"
        ):
            assert got == "busy"
            return None
        if job.state in TERMINAL:
            assert got == job.state
            return None
        assert isinstance(got, Claim)
        job.state, job.place, job.since = "running", "", self.now
        job.fence += 1
        job.attempt += 1
        assert (got.fence, got.attempt, got.crashes) == (job.fence, job.attempt, job.crashes)
        assert got.late == (job.deadline is not None and job.deadline <= self.now)
        assert self.ledger.claim(job.id, "worker", self.deliveries) == got, "its reply was lost"
        return got

    def _holds(self, claim: Claim) -> bool:
        job = self.jobs[claim.job_id]
        return job.state == "running" and job.fence == claim.fence

    @rule(claim=consumes(claims), ending=st.sampled_from(["done", "failed", "expired"]))
    def finish(self, claim: Claim | None, ending: Any) -> None:
        if claim is None:
            return
        holds = self._holds(claim)
        result = Result(id=claim.job_id, task=claim.task, state=ending, output={"by": claim.fence})
        assert self.ledger.finish(claim, Ending.of(result)) == holds
        if holds:
            self.jobs[claim.job_id].state = ending
            assert self.store.result(claim.job_id) == result

    @rule(claim=consumes(claims), wait=st.sampled_from([0.0, 4.0]), counts=st.booleans())
    def release(self, claim: Claim | None, wait: float, counts: bool) -> None:
        if claim is None:
            return
        holds = self._holds(claim)
        assert self.ledger.release(claim, wait=wait, counts=counts) == holds
        if holds:
            job = self.jobs[claim.job_id]
            job.state, job.since = "queued", self.now + wait
            job.attempt -= not counts
            if wait:
                job.place = "delayed"
            else:
                job.line_up()

    @rule(claim=claims)
    def beat(self, claim: Claim | None) -> None:
        if claim is None:
            return
        lost = self.ledger.beat([claim])
        assert lost == (set() if self._holds(claim) else {claim.job_id})
        if not lost:
            self.jobs[claim.job_id].since = self.now

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self._some(data)
        if job is None:
            return
        result = Result(id=job.id, task=f"{job.plugin}.task", state="cancelled")
        assert self.store.end(result) == (job.state not in TERMINAL)
        if job.state not in TERMINAL:
            job.state = "cancelled"

    @rule(data=st.data())
    def give_up_doorbell(self, data: st.DataObject) -> None:
        job = self._some(data, "queued")
        if job is None:
            return
        self.ledger.give_up(job.id)
        if job.place == "fed":
            job.line_up()

    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        job = self._some(data)
        if job is None:
            return
        can = job.state in ("failed", "expired", "dead")
        assert self.store.revive(job.id) is can
        if can:
            job.state, job.place, job.deadline = "queued", "ready", None
            job.attempt = job.crashes = 0

    @rule(idle=st.booleans())
    def take_suspect(self, idle: bool) -> None:
        suspects = {j.id for j in self.jobs.values() if j.place == "suspects"}
        suspects = {i for i in suspects if self.jobs[i].state == "queued"}
        got = self.ledger.take_suspect("worker", 60, idle=idle)
        if not suspects:
            assert got is None
        elif not idle:
            assert got == ""
        else:
            assert got in suspects
            job = self.jobs[str(got)]
            job.place, job.since = "fed", self.now

    @rule()
    def reap(self) -> None:
        self._due()
        lost = [
            job
            for job in self.jobs.values()
            if job.state == "queued" and job.place == "fed" and job.since <= self.now - PATIENCE
        ]
        expired = [
            job
            for job in self.jobs.values()
            if job.state == "running" and job.since + LEASE <= self.now
        ]
        reaped = self.ledger.reap(doorbell_seconds=PATIENCE)
        assert (reaped.leases, reaped.doorbells) == (len(expired), len(lost))
        for job in lost:
            job.line_up()
        for job in expired:
            job.attempt -= 1
            job.crashes += 1
            if job.crashes >= 3:
                job.state = "dead"
            else:
                job.state = "queued"
                job.line_up()

    @invariant()
    def records_agree(self) -> None:
        for job in self.jobs.values():
            record = self.store.job(job.id)
            assert (record.state, record.attempt, record.crashes) == (
                job.state,
                job.attempt,
                job.crashes,
            ), job

    @invariant()
    def everything_waits_in_one_place_and_is_counted(self) -> None:
        client, prefix = self.store.client, self.store.keys.prefix
        queued = [job for job in self.jobs.values() if job.state == "queued"]

        def members(name: str) -> set[str]:
            return set(client.zrange(f"{prefix}{name}", 0, -1))

        def those(place: str) -> set[str]:
            return {job.id for job in queued if job.place == place}

        for place in ("delayed", "fed", "suspects"):
            assert members(place) == those(place), place
        assert members("lease") == {j.id for j in self.jobs.values() if j.state == "running"}
        assert members("dead") == {j.id for j in self.jobs.values() if j.state == "dead"}
        depth: dict[str, int] = {}
        flows: dict[str, set[str]] = {}
        for job in queued:
            for name in (job.job_class, f"{job.job_class}/{job.tenant}"):
                depth[name] = depth.get(name, 0) + 1
            if job.place == "ready":
                flow = f"ready:{job.job_class}/{job.tenant}/{job.plugin}"
                flows.setdefault(flow, set()).add(job.id)
        if those("fed"):
            depth["@fed"] = len(those("fed"))
        got = {name: int(value) for name, value in client.hgetall(f"{prefix}depth").items()}
        assert got == depth
        levels: dict[str, set[str]] = {}
        for flow in flows:
            level, tenant, plugin = flow.split("/")
            levels.setdefault(level, set()).add(tenant)
            levels.setdefault(f"{level}/{tenant}", set()).add(plugin)
        kept = {key.removeprefix(prefix) for key in client.scan_iter(f"{prefix}ready:*")}
        assert {key for key in kept if not key.endswith(":vt")} == flows.keys() | levels.keys()
        assert all(key.removesuffix(":vt") in levels for key in kept if key.endswith(":vt"))
        for key, ids in (flows | levels).items():
            assert members(key) == ids, key
        for job_class in CLASSES:
            ids = {job.id for job in queued if job.job_class == job_class}
            assert members(f"waiting:{job_class}") == ids


@pytest.fixture
def turned_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts that read the time from a key."""
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


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("program", ["valkey-server", "redis-server"])
def test_the_scripts_do_what_the_model_says(
    program: str,
    turned_clock: None,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if program == "redis-server":
        found = shutil.which(program)
        if found is None:
            pytest.skip("There is no redis-server.")
        monkeypatch.setattr(embedded, "find_server", lambda: Path(found))
    # 2,000 steps, or 20,000.
    examples = 400 if pytestconfig.getoption("--nightly") else 40
    # A server of its own: the machine empties it.
    with EmbeddedServer() as own:
        Ledger.url = own.url
        run_state_machine_as_test(
            Ledger,
            settings=settings(
                max_examples=examples,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
