"""Batches through a real Valkey and real workers: open ones, full queues, and what breaks off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.errors import JobCancelled, QueueFull
from gptflow.packing import ITEMS_PER_MESSAGE
from gptflow.queue.redis_ledger import RedisLedger

Eventually = Callable[..., None]


@pytest.fixture
def limited(own: Client) -> Client:
    """An application that lets 100 rows of batches wait, and has no worker."""
    ledger = RedisLedger(own.transport.store, lease=15, dead_ttl=60)
    ledger.set_policy(config.load(limit_batch=100))
    ledger.close()
    return own


class CommandLine:
    """`gptflow` in a process of its own, on the application of a test."""

    def __init__(self, client: Client, folder: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPTFLOW_")}
        url, app = client.settings.broker_url, client.settings.app
        self.environment = kept | {"GPTFLOW_REDIS_URL": str(url), "GPTFLOW_APP": app}
        self.folder = folder

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gptflow", *args],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def command(own: Client, tmp_path: Path) -> CommandLine:
    return CommandLine(own, tmp_path)


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text(
        "".join(json.dumps({"id": f"r{n}", "value": row}) + "\n" for n, row in enumerate(rows))
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def accepted(client: Client) -> int:
    """How many messages of batches the queue has ever accepted."""
    store = client.transport.store
    return int(store.client.hget(store.keys.totals, "accepted:batch") or 0)


def test_results_of_an_open_batch_arrive_and_end_when_it_is_sealed(flow: Client) -> None:
    batch = flow.open_batch("bed.echo")
    for number in range(20 * ITEMS_PER_MESSAGE):
        batch.add({"value": number})
    ended = batch.handle.as_completed(20)
    first = [next(ended)[0] for _ in range(16 * ITEMS_PER_MESSAGE)]
    record = batch.handle.record
    assert (record.sealed, record.finished) == (False, False)
    assert record.total == record.done == len(first)
    timer = threading.Timer(0.5, batch.seal)
    timer.start()
    rest = [number for number, _ in ended]
    timer.join()
    assert sorted(first + rest) == list(range(20 * ITEMS_PER_MESSAGE))
    record = batch.handle.record
    assert (record.total, record.sealed, record.finished) == (1280, True, True)


def test_an_open_batch_that_is_cancelled_keeps_what_is_done_and_takes_no_more(
    flow: Client, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "open").touch()
    batch = flow.open_batch("bed.gate")
    for number in range(16 * ITEMS_PER_MESSAGE + 1):
        gate = "open" if number < ITEMS_PER_MESSAGE else "closed"
        batch.add({"id": f"row {number}", "value": str(tmp_path / gate)})
    eventually(lambda: batch.handle.record.done == ITEMS_PER_MESSAGE)
    assert flow.cancel(batch.id)
    results = batch.handle.results(20)
    assert [result.state for result in results] == ["done"] * 64 + ["cancelled"] * 15 * 64
    assert [result.custom_id for result in results] == [f"row {n}" for n in range(16 * 64)]
    with pytest.raises(JobCancelled):
        batch.seal()
    record = batch.handle.record
    assert (record.total, record.failed, record.cancelled) == (16 * 64, 15 * 64, True)
    assert not flow.cancel(batch.id)


def test_a_message_that_is_sent_twice_runs_once(own: Client) -> None:
    first = own.open_batch("bed.echo")
    for number in range(16 * ITEMS_PER_MESSAGE + 1):
        first.add({"value": number})
    again = own.open_batch("bed.echo", batch_id=first.id)
    for number in range(16 * ITEMS_PER_MESSAGE + 1):
        again.add({"value": number})
    again.seal()
    assert accepted(own) == 17
    assert again.handle.record.total == 16 * ITEMS_PER_MESSAGE + 1


def test_a_full_queue_refuses_a_batch_whole_or_makes_it_wait(
    limited: Client, start_worker: Any
) -> None:
    rows = [{"value": number} for number in range(500)]
    assert limited.submit_many("bed.echo", rows[:64], wait=False)
    with pytest.raises(QueueFull) as refused:
        limited.submit_many("bed.echo", rows, wait=False)
    assert refused.value.retry_after > 0
    assert accepted(limited) == 1
    worker = start_worker(app=limited.settings.app, limit_batch="100")
    assert len(limited.submit_many("bed.echo", rows).results(30)) == 500
    worker.terminate()


def test_the_command_line_says_when_the_queue_is_full_and_waits_where_it_may(
    limited: Client, command: CommandLine, start_worker: Any
) -> None:
    limited.submit_many("bed.echo", [{"value": 1}] * 100)
    write_rows(command.folder / "in.jsonl", list(range(300)))
    code, out, err = command.run("submit", "bed.echo", "in.jsonl")
    assert (code, out) == (11, "")
    assert "GF401" in err
    assert "seconds; --wait does so by itself" in err
    code, out, err = command.run("run", "bed.echo", '{"value": 1}', "--timeout", "0.1")
    assert code == 8, "another class has room"
    waiting = command.start("submit", "bed.echo", "in.jsonl", "--wait")
    worker = start_worker(app=limited.settings.app, limit_batch="100")
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert [json.loads(line)["output"]["value"] for line in out.splitlines()] == list(range(300))
    worker.terminate()


def test_a_client_that_is_killed_goes_on_and_nothing_runs_twice(
    own: Client, command: CommandLine, start_worker: Any, eventually: Eventually
) -> None:
    folder = command.folder
    gate = folder / "gate"
    (folder / "open").touch()
    values = [str(folder / "open")] * 700 + [str(gate)] * 1300
    write_rows(folder / "in.jsonl", values)
    with (folder / "in.jsonl").open("a") as stream:
        stream.write("not json\n")
    worker = start_worker(app=own.settings.app)
    args = ("submit", "bed.gate", "in.jsonl", "--out", "out.jsonl", "--errors", "bad.jsonl")
    client = command.start(*args)
    out = folder / "out.jsonl"
    eventually(lambda: out.exists() and out.read_text().count("\n") >= 600)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    kept = out.read_text().count("\n")
    note = json.loads((folder / "out.jsonl.batch").read_text())
    gate.touch()
    code, _, err = command.run(*args, "--resume")
    assert code == 9, err
    lines = read_lines(out)
    assert [line["custom_id"] for line in lines] == [*(f"r{n}" for n in range(2000)), "line-2001"]
    assert [line["error"] is None for line in lines] == [True] * 2000 + [False]
    assert read_lines(folder / "bad.jsonl") == lines[-1:]
    assert kept < 2000
    assert accepted(own) == 32, "64 rows a message, and each message once"
    assert own.batch(note["batch"]).record.done == 2000
    assert not (folder / "out.jsonl.batch").exists()
    worker.terminate()


def test_an_interrupted_client_keeps_what_is_done_and_goes_on_with_the_rest(
    own: Client, command: CommandLine, start_worker: Any, eventually: Eventually
) -> None:
    folder = command.folder
    (folder / "open").touch()
    gate = folder / "gate"
    write_rows(folder / "in.jsonl", [str(folder / "open")] * 64 + [str(gate)] * 200)
    worker = start_worker(app=own.settings.app)
    args = ("submit", "bed.gate", "in.jsonl", "--out", "out.jsonl")
    client = command.start(*args)
    out = folder / "out.jsonl"
    eventually(lambda: out.exists() and out.read_text().count("\n") == 64)
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=30)
    assert client.returncode == 130, err
    assert "--resume" in err
    assert len(read_lines(out)) == 64
    first = json.loads((folder / "out.jsonl.batch").read_text())["batch"]
    assert own.batch(first).record.cancelled
    gate.touch()
    code, _, err = command.run(*args, "--resume")
    assert code == 0, err
    assert [line["custom_id"] for line in read_lines(out)] == [f"r{n}" for n in range(264)]
    assert own.batch(first).record.done == 64
    worker.terminate()


def test_a_batch_that_was_left_to_the_queue_is_fetched_by_its_id(
    own: Client, command: CommandLine, start_worker: Any
) -> None:
    write_rows(command.folder / "in.jsonl", list(range(100)))
    code, out, err = command.run("submit", "bed.echo", "in.jsonl")
    assert code == 0, err
    batch = out.strip()
    worker = start_worker(app=own.settings.app)
    args = ("submit", "bed.echo", "in.jsonl", "--batch", batch, "--out", "out.jsonl")
    code, _, err = command.run(*args)
    assert code == 0, err
    lines = read_lines(command.folder / "out.jsonl")
    assert [line["output"]["value"] for line in lines] == list(range(100))
    assert accepted(own) == 2
    worker.terminate()


def test_a_batch_goes_on_when_its_worker_is_killed(
    own: Client, start_worker: Any, eventually: Eventually, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "open").touch()
    worker = start_worker(app=own.settings.app, lease="1")
    # Fewer have to wait than a worker runs at once of batches, so that all others get their turn.
    rows = [{"value": str(tmp_path / "open" if n % 4 else gate)} for n in range(500)]
    batch = own.submit_many("bed.gate", rows)
    eventually(lambda: batch.record.done == 375)
    worker.kill()
    gate.touch()
    other = start_worker(app=own.settings.app, lease="1")
    results = batch.results(30)
    assert [result.state for result in results] == ["done"] * 500
    assert (batch.record.done, batch.record.failed) == (500, 0)
    other.terminate()


def test_a_million_rows_could_be_given_one_by_one(limited: Client) -> None:
    """The client takes no more rows than the queue has room for."""
    taken = 0

    def rows() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield {"value": taken}

    batch = limited.open_batch("bed.echo")

    def send() -> None:
        try:
            for row in rows():
                batch.add(row)
        except JobCancelled:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    until = threading.Event()
    while (
        limited.transport.store.client.hget(limited.transport.store.keys.totals, "refused:batch")
        is None
    ):
        until.wait(0.02)
    batch.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert taken < 2000
