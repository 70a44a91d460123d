"""`gptflow up`: everything in one command, and `--demo`: everything once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptflow.cli.session import Session, model_option, note
from gptflow.config import RUNNING, UP_FILE, Settings
from gptflow.errors import ConfigError, GPTFlowError

if TYPE_CHECKING:
    from gptflow.client import Client

BEAT = "beat"
READY_SECONDS = 180
STOP_SECONDS = 20


@click.command(short_help="Start Redis, a worker and the scheduler.")
@click.option("--demo", is_flag=True, help="Run sample input through every plugin, then stop.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@model_option
@click.pass_obj
def up(session: Session, demo: bool, workers: int, model: str | None) -> int:
    """Start Redis, a worker and the scheduler, and stay up until interrupted.

    Redis is the configured one, else a Redis or Valkey found on this machine, else the
    one that comes with gptflow[demo]. While this runs, every other `gptflow` command and
    `gptflow.Client()` find it without being told.
    """
    settings = session.settings(model=model)
    if settings.broker_url == "memory://":
        raise ConfigError(
            "memory:// is one process's own: a worker cannot be started for it.",
            hint="Unset GPTFLOW_REDIS_URL, and `gptflow up` starts a server.",
        )
    if settings.sources["redis_url"] == RUNNING and not demo:
        raise ConfigError(
            "`gptflow up` is running already.",
            hint="`gptflow worker` adds a worker to it; with another GPTFLOW_DATA_DIR it has "
            "a server of its own.",
        )
    # A worker would refuse to start for the same reason, only later and in fewer words.
    session.registry(settings).require_all()
    _pull_model(settings)
    with _started(session, settings, workers=workers, beat=not demo) as (client, processes):
        if demo:
            from gptflow.cli.demo import run_demo

            return run_demo(session, client)
        return _watch(processes)


def _pull_model(settings: Settings) -> None:
    """Have the model before the worker starts, so that its progress can be seen."""
    from gptflow.queue.engine_factory import is_scripted

    if is_scripted(settings.model) or Path(settings.model).is_dir():
        return
    from gptflow.cli.models import report_stages
    from gptflow.models import ModelStore

    store = ModelStore(
        settings.cache_dir, offline=settings.offline, accepted=settings.accept_licences
    )
    store.ensure(settings.model, progress=report_stages())


@contextmanager
def _started(
    session: Session, settings: Settings, *, workers: int, beat: bool
) -> Iterator[tuple[Client, dict[str, subprocess.Popen[bytes]]]]:
    """Server, workers and scheduler, until the block ends."""
    from gptflow.client import Client
    from gptflow.queue.embedded import EmbeddedServer

    with ExitStack() as stack:
        stack.enter_context(_interrupt_on_terminate())
        url = settings.broker_url
        if url is None:
            server = stack.enter_context(EmbeddedServer(settings.data_dir / "redis"))
            url = server.url
            stack.enter_context(_announced(settings.data_dir, url))
            note(f"Redis: {server.description}")
        client = stack.enter_context(Client(settings=session.settings(redis_url=url)))
        client.transport.workers()  # a server that does not answer is found out before the rest
        environment = {
            **os.environ,
            "GPTFLOW_REDIS_URL": url,
            "GPTFLOW_MODEL": settings.model,
        }
        started = time.monotonic()
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for number in range(1, workers + 1):
            processes[f"worker {number}"] = stack.enter_context(
                _process("worker", session.options, environment | _ports(settings, number))
            )
        if beat:
            processes[BEAT] = stack.enter_context(_process("beat", session.options, environment))
        _wait_until_ready(client, processes)
        note(f"Worker: ready in {time.monotonic() - started:.1f} s with {settings.model}")
        yield client, processes


def _ports(settings: Settings, number: int) -> dict[str, str]:
    """A port of its own for each worker's metrics, from the settings' one on."""
    if not settings.metrics_port:
        return {}
    return {"GPTFLOW_METRICS_PORT": str(settings.metrics_port + number - 1)}


@contextmanager
def _announced(data_dir: Path, url: str) -> Iterator[None]:
    """Let `gptflow.config.load` find the server while it runs."""
    path = data_dir / UP_FILE
    data_dir.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _process(
    command: str, options: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A `gptflow` process that ends with this one, even if this one is killed.

    It has a session of its own, so that Ctrl-C reaches it through us alone.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "gptflow", *options, command, "--bound"],
        env=dict(environment),
        start_new_session=True,
        stdin=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                note(f"{command} did not stop in {STOP_SECONDS} s and was killed.")
                process.kill()
                process.wait()
            if process.returncode:
                note(f"{command} ended with exit code {process.returncode}.")
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def _interrupt_on_terminate() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that no child outlives this process."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_until_ready(client: Client, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    own = {process.pid for name, process in processes.items() if name != BEAT}
    while not own <= {worker.pid for worker in client.transport.workers()}:
        _require_alive(processes)
        if time.monotonic() > deadline:
            raise GPTFlowError(
                f"No worker was ready after {READY_SECONDS} s.",
                hint="Start one by hand to see why: `gptflow -v worker`.",
            )
        time.sleep(0.05)


def _require_alive(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise GPTFlowError(
                f"The {name} stopped with exit code {process.returncode}.",
                hint="What it printed above says why.",
            )


def _watch(processes: Mapping[str, subprocess.Popen[bytes]]) -> int:
    """Say so and stay until interrupted; a child that stops by itself ends everything."""
    try:  # before it is said: whoever reads it may interrupt at once
        note("Ready. In another terminal: gptflow run text.chat 'Hello!'   (Ctrl-C stops)")
        while True:
            _require_alive(processes)
            time.sleep(0.5)
    except KeyboardInterrupt:
        note("Stopping.")
        return 0
