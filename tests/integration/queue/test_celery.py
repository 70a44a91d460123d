"""What callers that use Celery get: results, revocations, options, groups, chains and chords."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from gptflow import config
from gptflow.celery import job
from gptflow.client import Client
from gptflow.envelope import Envelope, new_id
from gptflow.errors import (
    ConfigError,
    GPTFlowError,
    InvalidInput,
    JobCancelled,
    JobNotFound,
    QueueFull,
    TaskNotFound,
)
from gptflow.queue.app import App, make_app
from gptflow.queue.connection import for_kombu
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.keys import Keys
from gptflow.queue.ledger import Claim
from gptflow.queue.message import TASK
from gptflow.queue.records import Ending
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.result import Result

Eventually = Callable[..., None]

KEY = "a key for chains in these tests"


@pytest.fixture
def app(flow: Client) -> Iterator[App]:
    """An application whose worker is running."""
    with make_app(flow.settings) as made:
        yield made


@pytest.fixture(scope="module")
def chained(server: EmbeddedServer, start_worker: Callable[..., Any]) -> Iterator[App]:
    """An application whose jobs are signed, and its worker."""
    worker = start_worker(app="chained", signing_key=KEY, lease="1.5")
    with make_app(config.load(redis_url=server.url, app="chained", signing_key=KEY)) as made:
        yield made
    assert worker.terminate() == 0


def echo(app: App, value: Any = None, **options: Any) -> Any:
    return job("bed.echo", None if value is None else {"value": value}, of=app, **options)


def test_a_job_is_a_celery_task(app: App) -> None:
    result = app.tasks[TASK].delay({"task": "bed.echo", "input": {"value": 1}})
    assert result.get(timeout=20) == {"value": 1}
    assert (result.state, result.status) == ("SUCCESS", "SUCCESS")
    assert result.successful()
    assert result.ready()
    assert not result.failed()
    assert result.name == "bed.echo"
    assert isinstance(result.date_done, datetime)
    again = app.AsyncResult(result.id)
    assert again.get(timeout=1) == {"value": 1}
    result.forget()
    assert AsyncResult(result.id, app=app).result == {"value": 1}


def test_an_envelope_can_be_given_as_one(app: App) -> None:
    envelope = Envelope(task="bed.echo", input={"value": 1}, job_class="interactive")
    result = app.tasks[TASK].delay(envelope)
    assert result.id == envelope.id
    assert result.get(timeout=20) == {"value": 1}
    assert app.transport.job(result.id).job_class == "interactive"


def test_a_failure_is_the_jobs_own_error(app: App) -> None:
    result = echo(app, "bad").delay()
    with pytest.raises(GPTFlowError) as caught:
        result.get(timeout=20)
    assert caught.value.code == "GF502"
    assert result.state == "FAILURE"
    assert result.failed()
    error = result.get(propagate=False)
    assert isinstance(error, GPTFlowError)
    missing = job("no.such", {"value": 1}, of=app).delay()
    with pytest.raises(TaskNotFound):
        missing.get(timeout=20)


def test_states_are_those_of_the_record(app: App, eventually: Eventually, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    result = job("bed.gate", {"value": str(gate)}, of=app).delay()
    eventually(lambda: result.state == "STARTED")
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.2)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0)
    later = echo(app, 1).apply_async(countdown=60)
    assert later.state == "PENDING"
    gate.touch()
    assert result.get(timeout=20) == {"value": "open"}
    late = echo(app, 1).apply_async(expires=0.001, countdown=0.3)
    with pytest.raises(GPTFlowError):
        late.get(timeout=20)
    assert late.state == "FAILURE"
    assert app.transport.job(late.id).state == "expired"


def test_revoke_cancels_what_waits_and_terminate_what_runs(
    app: App, eventually: Eventually
) -> None:
    waiting = echo(app, 1).apply_async(countdown=60)
    waiting.revoke()
    assert waiting.state == "REVOKED"
    with pytest.raises(JobCancelled):
        waiting.get(timeout=1)
    running = job("bed.sleep", {"value": 3600}, of=app).delay()
    eventually(lambda: running.state == "STARTED")
    running.revoke()
    assert running.state == "STARTED"
    running.revoke(terminate=True)
    assert running.state == "REVOKED"
    app.control.revoke([waiting.id, running.id])


def test_a_job_that_is_not_there_is_pending_or_lost(app: App) -> None:
    lost = app.AsyncResult(new_id())
    assert lost.state == "PENDING"
    with pytest.raises(JobNotFound):
        lost.get()
    to_come = app.AsyncResult("6d0f2a53-6f0b-4c12-9d7e-8f3a3f1f6a70")
    with pytest.raises(CeleryTimeoutError):
        to_come.get(timeout=0.1)
    with pytest.raises(InvalidInput):
        app.AsyncResult("../../etc/passwd").get(timeout=1)


def test_celerys_options_become_times_of_the_record(own: Client) -> None:
    with make_app(own.settings) as app:
        store, now = own.transport.store, time.time()

        def times(**options: Any) -> tuple[float, float]:
            result = echo(app, 1).apply_async(**options)
            wire = store.client.hget(store.keys.job(result.id), "wire")
            envelope = Envelope.model_validate_json(wire)
            return (envelope.not_before or now) - now, (envelope.deadline or now) - now

        hour = datetime.now(UTC) + timedelta(hours=1)
        near = pytest.approx
        assert times() == (0, 0)
        assert times(countdown=10) == (near(10, abs=2), 0)
        assert times(eta=hour) == (near(3600, abs=2), 0)
        assert times(eta=hour.isoformat()) == (near(3600, abs=2), 0)
        assert times(expires=20) == (0, near(20, abs=2))
        assert times(expires=hour) == (0, near(3600, abs=2))
        assert times(time_limit=30, soft_time_limit=5) == (0, near(5, abs=2))
        assert times(countdown=10, time_limit=30, expires=3600) == (
            near(10, abs=2),
            near(40, abs=2),
        )
        result = echo(app, 1).apply_async(queue="gf.batch")
        assert own.job(result.id).record.job_class == "batch"
        # Nothing of it is in Celery's queues.
        assert store.client.llen(store.keys.queue("standard")) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 9},
        {"queue": "celery"},
        {"serializer": "pickle"},
        {"compression": "gzip"},
        {"nonsense": 1},
        {"task_id": "../x"},
        {"link_error": "x"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_a_record_cannot_keep_is_refused(own: Client, options: dict[str, Any]) -> None:
    with make_app(own.settings) as app, pytest.raises(InvalidInput):
        echo(app, 1).apply_async(**options)
    assert own.transport.jobs(None, 5) == []


@pytest.mark.parametrize("args", [(), ("text",), (1, 2, 3), ({"task": "x"},), ({"nonsense": 1},)])
def test_what_is_no_envelope_is_refused(own: Client, args: Any) -> None:
    with make_app(own.settings) as app, pytest.raises(InvalidInput):
        app.tasks[TASK].delay(*args)


def test_keys_and_limits_hold_for_celery_too(
    server: EmbeddedServer, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(app="limits", limit_standard="3")
    assert worker.terminate() == 0
    with make_app(config.load(redis_url=server.url, app="limits")) as app:
        first = echo(app, 1, key="k").delay()
        assert echo(app, 1, key="k").delay().id == first.id
        group(echo(app, 1, key="k"), echo(app, 2, key="other")).delay()
        echo(app, 3).delay()
        with pytest.raises(QueueFull) as caught:
            echo(app, 4).delay()
        assert caught.value.retry_after > 0
        assert len(app.transport.jobs(None, 10)) == 3


def test_groups(app: App) -> None:
    result = group(echo(app, n) for n in range(20)).delay()
    assert result.get(timeout=20) == [{"value": n} for n in range(20)]
    assert result.successful()
    mixed = group(echo(app, 1), echo(app, "bad")).delay()
    with pytest.raises(GPTFlowError):
        mixed.get(timeout=20)
    assert mixed.completed_count() == 1
    assert mixed.failed()
    waiting = group(echo(app, n) for n in range(3)).apply_async(countdown=60)
    waiting.revoke()
    assert {each.state for each in waiting} == {"REVOKED"}
    again = group(echo(app, n, key=f"g{n}") for n in range(3))
    assert [each.id for each in again.delay()] == [each.id for each in again.delay()]
    assert again.delay().get(timeout=20) == [{"value": n} for n in range(3)]


def test_chains_are_refused_unless_signed_or_allowed(own: Client) -> None:
    with make_app(own.settings) as app:
        for canvas in (
            chain(echo(app, 1), echo(app)),
            chord([echo(app, 1)], echo(app, into="value")),
        ):
            with pytest.raises(ConfigError) as caught:
                canvas.delay()
            assert "GPTFLOW_ALLOW_CHAINS" in str(caught.value)
        with pytest.raises(ConfigError):
            echo(app, 1).apply_async(link=echo(app))
    assert own.transport.jobs(None, 5) == []


def test_a_chain(chained: App) -> None:
    result = (
        echo(chained, {"a": [1, 2]})
        | job("bed.echo", of=chained, take="value.a", into="value")
        | echo(chained)
        | job("bed.echo", {"value": "kept"}, of=chained, take="value", into="more")
        | job("bed.echo", of=chained, take="value", into="value")
    ).delay()
    with pytest.raises(InvalidInput):  # bed.echo has no field `more`
        result.get(timeout=20)
    assert result.parent.state == "FAILURE"
    assert result.parent.parent.get(timeout=1) == {"value": [1, 2]}
    linked = echo(chained, 1).apply_async(link=echo(chained))
    assert linked.get(timeout=20) == {"value": 1}
    timed = (echo(chained, 1) | echo(chained).set(countdown=0.5, expires=30)).delay()
    assert timed.get(timeout=20) == {"value": 1}
    record = chained.transport.job(f"job_{timed.id}")
    assert (record.started or 0) - (record.submitted or 0) >= 0.45


def test_what_follows_a_job_that_fails_or_is_cancelled_fails_with_it(chained: App) -> None:
    failed = (echo(chained, "bad") | echo(chained) | echo(chained)).delay()
    with pytest.raises(GPTFlowError) as caught:
        failed.get(timeout=20)
    assert caught.value.code == "GF502"
    assert [failed.state, failed.parent.state] == ["FAILURE", "FAILURE"]
    first = job("bed.sleep", {"value": 3600}, of=chained)
    cancelled = (first | echo(chained) | echo(chained)).delay()
    cancelled.parent.parent.revoke(terminate=True)
    with pytest.raises(JobCancelled):
        cancelled.get(timeout=20)
    unfit = (echo(chained, 1) | job("bed.echo", of=chained, take="nope") | echo(chained)).delay()
    with pytest.raises(InvalidInput):
        unfit.get(timeout=20)
    assert unfit.state == "FAILURE"


def test_a_later_step_can_be_revoked_before_its_turn(chained: App) -> None:
    result = (job("bed.sleep", {"value": 1}, of=chained) | echo(chained) | echo(chained)).delay()
    result.parent.revoke()
    with pytest.raises(GPTFlowError):
        result.get(timeout=20)
    assert result.parent.state == "REVOKED"
    assert result.parent.parent.get(timeout=20) == {"value": 1}
    with pytest.raises(GPTFlowError):
        chained.AsyncResult(result.id).get(timeout=20)


def test_a_chord(chained: App) -> None:
    result = chord(
        [echo(chained, n) for n in range(30)],
        job("bed.echo", of=chained, take="value", into="value"),
    ).delay()
    assert result.get(timeout=20) == {"value": list(range(30))}
    assert [each.get(timeout=1) for each in result.parent] == [{"value": n} for n in range(30)]
    longer = chord(
        [echo(chained, n) | echo(chained) for n in range(3)],
        job("bed.echo", of=chained, into="value") | echo(chained),
    ).delay()
    assert longer.get(timeout=20) == {"value": [{"value": 0}, {"value": 1}, {"value": 2}]}
    mapped = group(echo(chained, n) for n in range(3)) | job("bed.echo", of=chained, into="value")
    assert mapped.delay().get(timeout=20) == {"value": [{"value": n} for n in range(3)]}


def test_a_chord_of_which_a_job_fails_fails(chained: App) -> None:
    header = [echo(chained, 1), echo(chained, "bad"), job("bed.sleep", {"value": 0.5}, of=chained)]
    result = chord(header, job("bed.echo", of=chained, into="value")).delay()
    with pytest.raises(GPTFlowError) as caught:
        result.get(timeout=20)
    assert caught.value.code == "GF502"
    assert result.state == "FAILURE"


def test_what_cannot_be_kept_right_is_refused(chained: App) -> None:
    one = echo(chained, 1)
    for canvas in (
        one | group(echo(chained), echo(chained)),
        chain(one, chord([echo(chained)], echo(chained))),
        one | echo(chained, 1),
        one | chained.tasks["celery.backend_cleanup"].s(),
        one | echo(chained).set(priority=1),
        echo(chained, 1, key="k") | echo(chained),
    ):
        with pytest.raises(InvalidInput):
            canvas.delay()


def test_a_chain_goes_on_though_its_worker_died_between_two_steps(
    server: EmbeddedServer, start_worker: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    settings = config.load(redis_url=server.url, app="broken", allow_chains=True)
    with make_app(settings) as app:
        result = (echo(app, 1) | echo(app)).delay()
        store = app.transport.store
        # As a worker leaves it that recorded the result, and died.
        job_id = app.transport.jobs(None, 1)[0].id
        ledger = RedisLedger(store, lease=15, dead_ttl=60)
        claim = ledger.claim(job_id, "w", 1)
        output = Result(id=job_id, task="bed.echo", state="done", output={"value": "there"})
        assert isinstance(claim, Claim)
        assert ledger.finish(claim, Ending.of(output))
        ledger.close()
        assert result.state == "PENDING"
        worker = start_worker(app="broken", allow_chains="1")
        assert result.get(timeout=20) == {"value": "there"}
        # The next job is sent first, and what stood for it is cleared after that.
        eventually(lambda: store.client.zcard(store.keys.outbox) == 0)
        eventually(lambda: not store.client.hexists(store.keys.job(job_id), "wire"))
        assert worker.terminate() == 0


def test_a_chain_from_an_application_of_plain_celery_is_adopted_where_it_is_allowed(
    server: EmbeddedServer, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(app="plain", allow_chains="1")
    stock = Celery("plain", broker=for_kombu(server.url), set_as_current=False)
    stock.conf.broker_transport_options = {"global_keyprefix": Keys("plain").prefix}
    stock.conf.task_ignore_result = True
    first, step = new_id(), {"task": "bed.echo"}
    envelope = {"id": first, "task": "bed.echo", "input": {"value": 1}}
    signatures = [stock.signature(TASK, args=(spec,)) for spec in (envelope, step, step)]
    result = chain(*signatures).apply_async(queue="gf.standard")
    with make_app(config.load(redis_url=server.url, app="plain")) as app:
        assert app.AsyncResult(result.id).get(timeout=20) == {"value": 1}
    stock.close()
    assert worker.terminate() == 0


def test_a_worker_that_allows_no_chains_says_so_and_breaks_them(
    server: EmbeddedServer, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(app="strict")
    with make_app(config.load(redis_url=server.url, app="strict", allow_chains=True)) as app:
        result = (echo(app, 1) | echo(app)).delay()
        with pytest.raises(GPTFlowError) as caught:
            result.get(timeout=20)
        assert caught.value.code == "GF310"
        assert result.parent.get(timeout=1) == {"value": 1}
        assert "GPTFLOW_ALLOW_CHAINS" in worker.output
    assert worker.terminate() == 0
