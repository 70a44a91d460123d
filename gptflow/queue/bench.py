"""What `gptflow bench queue` measures: the queue without a model, and with one.

A worker process of its own serves an application of its own on a real server. Its engine is
scripted, so that all that costs time is the queue: the ledger, Celery, the worker's loop.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from gptflow.client import Client
from gptflow.config import Settings
from gptflow.errors import GPTFlowError
from gptflow.heads import Generate
from gptflow.prompt import RenderedPrompt
from gptflow.queue.control import stats
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.engine_factory import SCRIPTED, load_engine
from gptflow.queue.redis_store import RedisStore
from gptflow.request import Request

_READY_SECONDS = 300.0
_LIMIT = 600.0
_ROUNDS = 3
_WORDS = ("market", "river", "letter", "engine", "summer", "paper", "signal", "garden", "price")


def measure(
    settings: Settings,
    *,
    jobs: int,
    items: int,
    requests: int,
    tokens: int = 64,
) -> dict[str, float | int | None]:
    """Measure on the settings' server, or on an embedded one.

    Args:
        jobs: single jobs to send.
        items: rows of a batch to send, 64 a message.
        requests: to compare the settings' model behind the queue with the bare engine; 0 to
            leave that out.
        tokens: that each of these draws.

    Returns:
        `jobs_s` and `items_s`, ended per second from the first that started to the last that
        ended; `enqueue_p50_ms` and `enqueue_p99_ms`, of one submission; `round_trips_per_job`, of
        the worker to the ledger; `engine_req_s`, `queue_req_s`, medians of
        three rounds, and `share`, the median of the rounds' quotients.
    """
    with contextlib.ExitStack() as stack:
        if settings.broker_url is None:
            # With a folder, so that it writes its append-only file, as a server does that counts.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gptflow-bench-"))
            url = stack.enter_context(EmbeddedServer(Path(folder))).url
        else:
            url = settings.broker_url
        app = f"bench-{uuid.uuid4().hex[:8]}"
        own = settings.model_copy(update={"redis_url": SecretStr(url), "app": app})
        stack.callback(_forget, own)
        row = _without_model(own, jobs, items)
        if requests:
            row |= _with_model(own, requests, tokens)
    return row


def _without_model(settings: Settings, jobs: int, items: int) -> dict[str, Any]:
    settings = settings.model_copy(update={"model": SCRIPTED})
    with Client(settings=settings) as client, _worker(client):
        client.submit_many("text.echo", ["warm up"] * 640).results(_LIMIT)
        took = []
        before = _round_trips(settings)
        for number in range(jobs):
            began = time.perf_counter()
            last = client.submit("text.echo", f"text {number}")
            took.append(1000 * (time.perf_counter() - began))
        last.wait(_LIMIT)
        _wait_for(lambda: _is_empty(client))
        round_trips = _round_trips(settings) - before
        jobs_s = _rate(client, jobs, batch=None)
        batch = client.submit_many("text.echo", (f"text {number}" for number in range(items)))
        _wait_for(lambda: _ended(client, batch.id) >= items)
        items_s = _rate(client, items, batch=batch.id)
    took.sort()
    return {
        "jobs_s": round(jobs_s, 1),
        "items_s": round(items_s, 1),
        "enqueue_p50_ms": round(took[len(took) // 2], 3),
        "enqueue_p99_ms": round(took[int(len(took) * 0.99)], 3),
        "round_trips_per_job": round(round_trips / jobs, 2),
    }


def _with_model(settings: Settings, requests: int, tokens: int) -> dict[str, Any]:
    """The same prompts, to the same length, through the bare engine and through the queue.

    Both are kept ready, and take turns: whatever else slows the machine slows both.
    """
    dice = random.Random(7)  # noqa: S311  not for secrets
    texts = [" ".join(dice.choices(_WORDS, k=dice.randint(32, 128))) for _ in range(requests)]
    inputs = [{"text": text, "max_tokens": tokens} for text in texts]
    engine = load_engine(settings)
    try:
        with Client(settings=settings) as client, _worker(client):
            ways: tuple[Callable[[], int], ...] = (
                lambda: _ask(engine, texts, tokens),
                lambda: _through_queue(client, inputs),
            )
            drawn, queued = (way() for way in ways)  # memory is touched, libraries chosen
            timed = [[_seconds(way) for way in ways] for _ in range(_ROUNDS)]
    finally:
        engine.close()
    bare, through = (requests / statistics.median(times) for times in zip(*timed, strict=True))
    return {
        "requests": requests,
        "engine_req_s": round(bare, 3),
        "queue_req_s": round(through, 3),
        "share": round(statistics.median(bare / queue for bare, queue in timed), 4),
        "same_tokens": int(drawn == queued),
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _ask(engine: Any, texts: Sequence[str], tokens: int) -> int:
    head = Generate(max_tokens=tokens)
    futures = [
        engine.submit(Request(prompt=RenderedPrompt.plain(text), head=head)) for text in texts
    ]
    return sum(future.result().usage.tokens_out for future in futures)


def _through_queue(client: Client, inputs: Sequence[Any]) -> int:
    jobs = [client.submit("text.generate", given) for given in inputs]
    results = [job.wait(_LIMIT) for job in jobs]
    return sum(result.provenance.tokens_out for result in results if result.provenance)


def _rate(client: Client, count: int, *, batch: str | None) -> float:
    """Ended per second, by the records' own times."""
    records = client.transport.jobs("done", 10_000)
    own = [record for record in records if record.batch == batch]
    started = min(record.started or 0.0 for record in own)
    finished = max(record.finished or 0.0 for record in own)
    return count / (finished - started)


def _is_empty(client: Client) -> bool:
    return not client.transport.jobs("queued", 1) and not client.transport.jobs("running", 1)


def _ended(client: Client, batch_id: str) -> int:
    record = client.transport.batch(batch_id)
    return record.done + record.failed


def _wait_for(condition: Callable[[], bool]) -> None:
    """Look now and then, so that looking takes nothing from what is measured."""
    until = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > until:
            raise GPTFlowError(f"The queue is not done after {_LIMIT:.0f} s.")
        time.sleep(0.05)


def _round_trips(settings: Settings) -> int:
    (node,) = stats(settings).values()
    return int(node["pool"]["round_trips"])


@contextlib.contextmanager
def _worker(client: Client) -> Iterator[None]:
    """A worker process on the client's settings, until the block ends."""
    settings = client.settings
    environment = {
        **os.environ,
        "GPTFLOW_REDIS_URL": str(settings.broker_url),
        "GPTFLOW_APP": settings.app,
        "GPTFLOW_MODEL": settings.model,
        "GPTFLOW_PLUGINS": "text",
    }
    command = [sys.executable, "-m", "gptflow", "worker", "--bound"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + _READY_SECONDS
            while not client.transport.workers():
                if process.poll() is not None or time.monotonic() > until:
                    raise GPTFlowError(
                        "The worker did not start.", hint="What it printed above says why."
                    )
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def _forget(settings: Settings) -> None:
    """Remove everything that the application has left on the server."""
    store = RedisStore(str(settings.broker_url), settings.app, 60)
    with contextlib.suppress(GPTFlowError), store.reported():
        for key in store.client.scan_iter(f"{store.keys.prefix}*", count=1000):
            store.client.unlink(key)
    store.close()


def is_at_hand(settings: Settings) -> bool:
    """Whether the settings' model is here, so that measuring pulls nothing."""
    from gptflow.models import ModelStore

    if settings.model == SCRIPTED or Path(settings.model).is_dir():
        return True
    store = ModelStore(settings.cache_dir, offline=True)
    try:
        store.find(settings.model)
    except GPTFlowError:
        return False
    return True
