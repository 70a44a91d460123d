"""`gptflow dead` and `gptflow jobs watch|retry` against a real Valkey."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptflow.cli import main
from gptflow.client import Client
from gptflow.job import Job
from gptflow.queue.ledger import Claim
from gptflow.queue.records import Ending
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.result import Result
from gptflow.transport import WorkerRecord

LAST_WORDS = ["Job runs.", "Job runs alone."]
WORKER = "worker-1"


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def gptflow(
    own: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`gptflow("dead", "list")` on the application of a test."""
    monkeypatch.setenv("GPTFLOW_REDIS_URL", str(own.settings.broker_url))
    monkeypatch.setenv("GPTFLOW_APP", own.settings.app)

    def invoke(*args: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(args)
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return invoke


@pytest.fixture
def ledger(own: Client) -> Iterator[RedisLedger]:
    """What a worker has, with leases that run out at once."""
    made = RedisLedger(own.transport.store, lease=0.001, dead_ttl=60)
    record = WorkerRecord(name=WORKER, pid=1, model="scripted", started=time.time())
    made.announce(record, LAST_WORDS)
    yield made
    made.close()


@pytest.fixture
def die(own: Client, ledger: RedisLedger) -> Callable[..., Job]:
    """Submits a job whose worker dies each time that it runs it."""

    def submit_and_die(value: str, **options: Any) -> Job:
        job = own.submit("bed.echo", {"value": value}, **options)
        while job.state != "dead":
            ledger.take_suspect(WORKER, 60, idle=True)
            claim = ledger.claim(job.id, WORKER, 1)
            assert isinstance(claim, Claim)
            until = time.monotonic() + 20
            while not ledger.reap().leases:
                assert time.monotonic() < until
        return job

    return submit_and_die


def test_dead_jobs_are_listed_with_code_and_reason(gptflow: Any, die: Any) -> None:
    assert "There are no dead jobs." in gptflow("dead", "list").err
    assert gptflow("dead", "list", "--json").json == []
    jobs = [die(value, tenant="anna") for value in "abc"]
    rows = gptflow("dead", "list", "--json").json
    assert [row["id"] for row in rows] == [job.id for job in reversed(jobs)]
    assert [row["crashes"] for row in rows] == [3, 3, 3]
    assert {(row["tenant"], row["error"]["code"]) for row in rows} == {("anna", "GF505")}
    assert len(gptflow("dead", "list", "--json", "--limit", "2").json) == 2
    table = gptflow("dead", "list").out
    assert jobs[0].id in table
    assert "GF505" in table
    assert "died 3 times" in table


def test_a_dead_job_is_shown_with_its_workers_last_lines(gptflow: Any, die: Any) -> None:
    job = die("my secret")
    shown = gptflow("dead", "show", job.id, "--json").json
    assert (shown["state"], shown["error"]["code"]) == ("dead", "GF505")
    assert (shown["worker"], shown["log"]) == (WORKER, LAST_WORDS)
    assert "input" not in shown
    text = gptflow("dead", "show", job.id)
    assert "Job runs alone." in text.out
    assert "secret" not in text.out + text.err
    assert "secret" in gptflow("dead", "show", job.id, "--input").out
    with_input = gptflow("dead", "show", job.id, "--input", "--json").json
    assert with_input["input"] == {"value": "my secret"}


def test_only_dead_jobs_are_shown_replayed_and_purged(gptflow: Any, own: Client) -> None:
    job = own.submit("bed.echo", {"value": 1})
    assert "it is queued" in gptflow("dead", "show", job.id).err
    for command in (("replay",), ("purge", "--yes")):
        outcome = gptflow("dead", *command, job.id, "job_0")
        assert outcome.code == 8
        assert f"{job.id} is not dead." in outcome.err
        assert "job_0 is not dead." in outcome.err
    assert job.state == "queued"


def test_a_replayed_job_starts_from_nothing_and_ends(
    gptflow: Any, die: Any, own: Client, start_worker: Any
) -> None:
    # Its deadline has long passed when somebody comes to replay it.
    job, other = die("once more", timeout=2), die("stays")
    time.sleep(max(0.0, job.record.submitted + 2.1 - time.time()))
    outcome = gptflow("dead", "replay", job.id, "--json")
    assert (outcome.code, outcome.json) == (0, {"replayed": [job.id], "not_dead": []})
    record = job.record
    assert (record.state, record.attempt, record.crashes) == ("queued", 0, 0)
    assert [row["id"] for row in gptflow("dead", "list", "--json").json] == [other.id]
    worker = start_worker(app=own.settings.app)
    assert job.result(20) == {"value": "once more"}
    assert job.record.attempt == 1
    assert gptflow("dead", "replay", "--all").out == f"{other.id} is queued again.\n"
    assert other.result(20) == {"value": "stays"}
    assert "There are no dead jobs." in gptflow("dead", "replay", "--all").err
    worker.terminate()


def test_purging_asks_first_and_leaves_nothing(gptflow: Any, die: Any, own: Client) -> None:
    redis = own.transport.store.client

    first = die("large " * 20_000, key="a key")
    second = die("small")
    assert len([key for key in redis.scan_iter("*") if first.id in key]) > 1
    refused = gptflow("dead", "purge", "--all")
    assert refused.code == 2
    assert "2 dead jobs would be forgotten for good: confirm with --yes." in refused.err
    assert gptflow("dead", "purge").code == gptflow("dead", "purge", "--all", "job_1").code == 2
    outcome = gptflow("dead", "purge", first.id, "--yes", "--json")
    assert (outcome.code, outcome.json["purged"]) == (0, [first.id])
    assert not [key for key in redis.scan_iter("*") if first.id in key]
    # A key that was used by a job that is gone can be used again.
    assert own.submit("bed.echo", {"value": "x"}, key="a key").id != first.id
    assert gptflow("dead", "purge", "--all", "--yes").out == f"{second.id} is gone.\n"
    assert gptflow("dead", "list", "--json").json == []
    assert gptflow("jobs", "show", second.id).code == gptflow("dead", "show", second.id).code != 0


def test_a_job_that_was_replayed_meanwhile_is_not_purged(own: Client, die: Any) -> None:
    job = die("a")
    assert own.transport.revive(job.id)
    assert own.transport.purge([job.id]) == 0
    assert job.state == "queued"


def test_jobs_that_failed_or_expired_are_tried_again(
    gptflow: Any, own: Client, ledger: RedisLedger, start_worker: Any
) -> None:
    expired = own.submit("bed.echo", {"value": "late"}, timeout=0.05)
    failed = own.submit("bed.echo", {"value": "fails"})
    claim = ledger.claim(failed.id, WORKER, 1)
    assert isinstance(claim, Claim)
    failure = Result(id=failed.id, task="bed.echo", state="failed")
    assert ledger.finish(claim, Ending.of(failure))
    worker = start_worker(app=own.settings.app)
    assert expired.wait(20).state == "expired"
    outcome = gptflow("jobs", "retry", expired.id, failed.id)
    assert outcome.out == f"{expired.id} is queued again.\n{failed.id} is queued again.\n"
    assert outcome.code == 0
    assert expired.result(20) == {"value": "late"}
    assert failed.result(20) == {"value": "fails"}
    again = gptflow("jobs", "retry", failed.id, "--json")
    assert (again.code, again.json) == (8, {"retried": []})
    assert "it has not failed" in again.err
    assert gptflow("jobs", "retry", "batch_1").code == 3
    assert gptflow("jobs", "retry", "job_1").code != 0
    worker.terminate()


def test_a_job_is_watched_from_one_state_to_the_next(
    gptflow: Any, own: Client, start_worker: Any, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    job = own.submit("bed.gate", {"value": str(gate)})
    waiting = gptflow("jobs", "watch", job.id, "--timeout", "0.1")
    assert waiting.code == 8
    assert "queued" in waiting.out
    assert "it goes on" in waiting.err
    worker = start_worker(app=own.settings.app)
    gate.touch()
    lines = gptflow("jobs", "watch", job.id, "--json", "--timeout", "60").out.splitlines()
    assert json.loads(lines[-1])["state"] == "done"
    ended = gptflow("jobs", "watch", job.id)
    assert (ended.code, ended.out.split()[2:]) == (0, ["done"])
    bad = own.submit("bed.echo", {"value": "bad"})
    assert gptflow("jobs", "watch", bad.id).code == gptflow("jobs", "result", bad.id).code == 8
    batch = own.submit_many("bed.echo", [{"value": 1}, {"value": "bad"}])
    outcome = gptflow("jobs", "watch", batch.id, "--timeout", "60")
    assert outcome.code == 9
    assert "2 rows: 1 done, 1 failed." in outcome.err
    last = gptflow("jobs", "watch", batch.id, "--json").json
    assert (last["done"], last["failed"]) == (1, 1)
    worker.terminate()
