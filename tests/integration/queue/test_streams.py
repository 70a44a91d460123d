"""Streams whose reader loses the connection, whose server restarts, whose worker dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.queue.embedded import EmbeddedServer
from gptflow.streamed_text import StreamedText
from gptflow.transport import Event

PIECES = 25


def read(client: Client, job_id: str, at_piece: Callable[[int], None]) -> tuple[str, list[Event]]:
    """A job's text as a reader has it in the end, and the events."""
    text = StreamedText(lambda: None)
    events = []
    pieces = 0
    for event in client.job(job_id).events(timeout=60):
        events.append(event)
        text.take(event)
        if event.kind == "delta":
            pieces += 1
            at_piece(pieces)
    text.finish(client.job(job_id).result(20))
    return text.text, events


def once(at: int, call: Callable[[], Any]) -> Callable[[int], None]:
    def at_piece(pieces: int) -> None:
        if pieces == at:
            call()

    return at_piece


def test_a_stream_is_resumed_by_the_id_of_any_of_its_entries(flow: Client) -> None:
    job = flow.submit("bed.words", {"value": 5}, stream=True)
    events = list(job.events(timeout=20))
    for number, event in enumerate(events):
        assert list(job.events(after=event.id, timeout=5)) == (events[number + 1 :] or events[-1:])


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of one's own whose address stays when it is stopped and started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with EmbeddedServer(tmp_path / "redis", port=port) as server:
        yield server


def test_a_reader_whose_connection_is_cut_misses_and_repeats_nothing(
    restartable: EmbeddedServer, start_worker: Any
) -> None:
    worker = start_worker(redis_url=restartable.url)
    with Client(settings=config.load(redis_url=restartable.url)) as flow:
        job = flow.submit("bed.words", {"value": PIECES}, stream=True)
        admin = flow.transport.store.client
        cut = 0

        def every_third(pieces: int) -> None:
            nonlocal cut
            if pieces % 3 == 0:
                # Everybody's, the worker's included.
                cut += admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        text, events = read(flow, job.id, every_third)
        assert cut > 0
        assert text == job.result(20)["value"]
        assert [event.kind for event in events if event.kind != "delta"] == ["end"]
        assert "".join(event.text for event in events) == text
    assert worker.terminate() == 0


def test_a_stream_goes_on_when_the_server_restarts(
    restartable: EmbeddedServer, start_worker: Any
) -> None:
    worker = start_worker(redis_url=restartable.url)
    with Client(settings=config.load(redis_url=restartable.url)) as flow:
        job = flow.submit("bed.words", {"value": PIECES}, stream=True)
        restarting: list[threading.Thread] = []

        def restart() -> None:
            restartable.stop()
            timer = threading.Timer(1, restartable.start)
            timer.start()
            restarting.append(timer)

        text, events = read(flow, job.id, once(5, restart))
        restarting[0].join()
        assert text == job.result(20)["value"]
        assert [event.kind for event in events if event.kind != "delta"] == ["end"]
        assert job.record.attempt == 1
    assert worker.terminate() == 0


def test_the_command_line_prints_the_whole_text_when_the_worker_is_killed(
    own: Client, start_worker: Any
) -> None:
    settings = {"app": own.settings.app, "lease": "1"}
    first = start_worker(**settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPTFLOW_")}
    environment = kept | {
        "GPTFLOW_REDIS_URL": str(own.settings.broker_url),
        "GPTFLOW_APP": own.settings.app,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "gptflow", "run", "bed.words", f'{{"value": {PIECES}}}', "--stream"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        begun = process.stdout.read(1)
        first.kill()
        second = start_worker(**settings)
        rest, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    (record,) = own.transport.jobs(None, 2)
    assert record.crashes == 1
    assert (begun + rest).decode() == own.job(record.id).result(5)["value"] + "\n"
    second.terminate()


def test_a_stream_starts_again_when_its_worker_is_killed(own: Client, start_worker: Any) -> None:
    settings = {"app": own.settings.app, "lease": "1"}
    first = start_worker(**settings)
    job = own.submit("bed.words", {"value": PIECES}, stream=True)
    started: list[Any] = []

    def replace() -> None:
        first.kill()
        started.append(start_worker(**settings))

    resets = []
    pieces = []
    for number, piece in enumerate(job.stream(60, on_reset=lambda: resets.append(1))):
        pieces.append(piece)
        if number == 4:
            replace()
    assert "".join(pieces) == job.result(20)["value"]
    assert not resets, "the same job writes the same text"
    assert [event.kind for event in job.events(timeout=20)].count("reset") == 1
    started[0].terminate()
