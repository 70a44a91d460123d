"""`gptflow jobs`: what is queued, running and done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from gptflow.cli.session import (
    PARTIAL,
    SECONDS,
    Session,
    exit_code,
    json_option,
    note,
    print_json,
    print_table,
    progress,
    time_text,
)
from gptflow.errors import InvalidInput, JobNotFound, JobTimeout
from gptflow.result import TERMINAL, State

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.transport import BatchRecord, JobRecord

Record = TypeVar("Record", "JobRecord", "BatchRecord")

TRAINING = "train.run"

_TIMES = ("submitted", "started", "finished")

_PAUSE = 0.2
"""Seconds between two looks at what is watched."""


@click.group(short_help="List, show, watch, cancel and retry jobs.")
def jobs() -> None:
    """List, show, watch, cancel and retry jobs."""


@jobs.command("list")
@click.option("--state", type=click.Choice(get_args(State)), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--train", is_flag=True, help="Those of the queue of trainings.")
@json_option
@click.pass_obj
def list_(session: Session, state: State | None, limit: int, train: bool, as_json: bool) -> None:
    """List jobs, the newest first."""
    with session.client(needs_queue=True, training=train) as client:
        records = client.transport.jobs(state, limit)
    if as_json:
        print_json([dataclasses.asdict(record) for record in records])
        return
    print_table(
        ("id", "task", "state", "batch", "items", "submitted", "seconds"),
        (
            (r.id, r.task, r.state, r.batch, r.items, time_text(r.submitted), _seconds(r))
            for r in records
        ),
        empty=f"There are no{f' {state}' if state else ''} {'trainings' if train else 'jobs'}. "
        + (
            "`gptflow train TASK --data FILE --queue` makes one."
            if train
            else "`gptflow run text.chat 'Hello!'` makes one."
        ),
    )


@jobs.command()
@click.argument("job_id")
@json_option
@click.pass_obj
def show(session: Session, job_id: str, as_json: bool) -> None:
    """Show a job or a batch, with its result where there is one."""
    with _client_of(session, job_id) as client:
        record, result = _look_up(client, job_id)
    fields = dataclasses.asdict(record) | ({"result": result} if result else {})
    if as_json:
        print_json(fields)
    else:
        times = {name: time_text(fields.get(name)) for name in _TIMES if name in fields}
        text = json.dumps(fields.pop("result", None), ensure_ascii=False, indent=2)
        shown = fields | times | ({"result": text} if result else {})
        print_table(("field", "value"), shown.items())


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", type=SECONDS, help="Seconds to wait.")
@click.pass_obj
def result(session: Session, job_id: str, timeout: float | None) -> int:
    """Wait for a job and print its result as JSON.

    A batch's is one line a row. The exit code is that of the job's error, and 9 where rows of a
    batch failed.
    """
    with _client_of(session, job_id) as client:
        if not job_id.startswith("batch_"):
            ended = client.job(job_id).wait(timeout)
            print_json(ended.as_dict())
            return exit_code(ended)
        rows = client.batch(job_id).results(timeout)
    for row in rows:
        click.echo(json.dumps(row.as_row(), ensure_ascii=False))
    return 0 if all(row.ok for row in rows) else PARTIAL


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def cancel(session: Session, job_id: str) -> int:
    """Stop a job or a batch. Exit code 8 if it had ended."""
    with _client_of(session, job_id) as client:
        stopped = client.cancel(job_id)
    click.echo(f"{job_id} {'is cancelled' if stopped else 'had ended already'}.")
    return 0 if stopped else 8


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", type=SECONDS, help="Seconds to watch.")
@json_option
@click.pass_obj
def watch(session: Session, job_id: str, timeout: float | None, as_json: bool) -> int:
    """Follow a job or a batch until it ends.

    A job has a line for each thing that happens to it, a batch its progress, a training its steps;
    with --json, the record as it is after each change, or what a training tells. The exit code is
    as for `result`.
    """
    with _client_of(session, job_id) as client:
        if job_id.startswith("batch_"):
            return _watch_batch(client, job_id, timeout, as_json)
        if client.transport.job(job_id).task == TRAINING:
            from gptflow.cli.training_job import follow

            return follow(client, job_id, timeout, as_json)
        for record in _changes(lambda: client.transport.job(job_id), _job_ended, timeout):
            click.echo(json.dumps(dataclasses.asdict(record)) if as_json else _line(record))
        return exit_code(client.job(job_id).wait(_PAUSE))


@jobs.command()
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@json_option
@click.pass_obj
def retry(session: Session, job_ids: tuple[str, ...], as_json: bool) -> int:
    """Run failed, expired or dead jobs once more.

    They start as if they had never run, without a deadline. Exit code 8 if one of them has not
    failed. The rows of a batch are tried again by submitting them again.
    """
    for job_id in job_ids:
        if job_id.startswith("batch_"):
            raise InvalidInput(
                f"{job_id} is a batch, and only jobs can be tried again.",
                hint="Submit the rows again that failed.",
            )
    retried: dict[str, bool] = {}
    for job_id in job_ids:
        with _client_of(session, job_id) as client:
            retried[job_id] = client.transport.revive(job_id)
    if as_json:
        print_json({"retried": [job for job, done in retried.items() if done]})
    for job_id, done in retried.items():
        if not done:
            note(f"{job_id} cannot be tried again: it has not failed, or carries rows of a batch.")
        elif not as_json:
            click.echo(f"{job_id} is queued again.")
    return 0 if all(retried.values()) else 8


@contextlib.contextmanager
def _client_of(session: Session, job_id: str) -> Iterator[Client]:
    """A client of the queue that has the job: that of tasks, or else that of trainings."""
    with session.client(needs_queue=True) as client:
        try:
            if not job_id.startswith("batch_"):
                client.transport.job(job_id)
        except JobNotFound:
            with session.client(needs_queue=True, training=True) as trainings:
                try:
                    trainings.transport.job(job_id)
                except JobNotFound:
                    pass  # what is told is that there is no such job
                else:
                    yield trainings
                    return
        yield client


def _watch_batch(client: Client, batch_id: str, timeout: float | None, as_json: bool) -> int:
    record = client.transport.batch(batch_id)
    changes = _changes(lambda: client.transport.batch(batch_id), _batch_ended, timeout)
    if as_json:
        for record in changes:
            click.echo(json.dumps(dataclasses.asdict(record)))
    else:
        with progress("Batch", record.total if record.sealed else None) as update:
            for record in changes:
                update(record.done + record.failed)
        note(f"{record.total} rows: {record.done} done, {record.failed} failed.")
    return PARTIAL if record.failed else 0


def _changes(
    look: Callable[[], Record], ended: Callable[[Record], bool], timeout: float | None
) -> Iterator[Record]:
    """A record as it is now, and again whenever it has changed, until it has ended.

    Raises:
        JobTimeout: it did not end in time.
    """
    until = None if timeout is None else time.monotonic() + timeout
    last = look()
    yield last
    while not ended(last):
        if until is not None and time.monotonic() >= until:
            raise JobTimeout(f"{last.id} did not end within {timeout:g} seconds; it goes on.")
        time.sleep(_PAUSE)
        record = look()
        if record != last:
            last = record
            yield record


def _job_ended(record: JobRecord) -> bool:
    return record.state in TERMINAL


def _batch_ended(record: BatchRecord) -> bool:
    return record.finished


def _line(record: JobRecord) -> str:
    words = [time_text(record.finished or time.time()), record.state]
    if record.state == "running":
        words.append(f"on {record.worker}")
    if record.attempt > 1:
        words.append(f"attempt {record.attempt}")
    if record.crashes:
        words.append(f"{record.crashes} crash{'es' if record.crashes > 1 else ''} so far")
    return "  ".join(words)


def _look_up(client: Client, job_id: str) -> tuple[JobRecord | BatchRecord, dict[str, Any] | None]:
    if job_id.startswith("batch_"):
        return client.transport.batch(job_id), None
    record = client.transport.job(job_id)
    try:
        return record, client.transport.result(job_id, 0).as_dict()
    except (JobTimeout, JobNotFound):
        return record, None


def _seconds(record: JobRecord) -> str:
    if record.started is None or record.finished is None:
        return ""
    return f"{record.finished - record.started:.2f}"
