"""`gptflow jobs`: what is queued, running and done."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import click

from gptflow.cli.session import (
    PARTIAL,
    SECONDS,
    Session,
    exit_code,
    json_option,
    print_json,
    print_table,
)
from gptflow.errors import JobNotFound, JobTimeout
from gptflow.result import State

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.transport import BatchRecord, JobRecord


_TIMES = ("submitted", "started", "finished")


@click.group(short_help="List, show and cancel jobs.")
def jobs() -> None:
    """List, show and cancel jobs."""


@jobs.command("list")
@click.option("--state", type=click.Choice(get_args(State)), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@json_option
@click.pass_obj
def list_(session: Session, state: State | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    with session.client(needs_queue=True) as client:
        records = client.transport.jobs(state, limit)
    if as_json:
        print_json([dataclasses.asdict(record) for record in records])
        return
    print_table(
        ("id", "task", "state", "batch", "items", "submitted", "seconds"),
        (
            (r.id, r.task, r.state, r.batch, r.items, _time(r.submitted), _seconds(r))
            for r in records
        ),
        empty=f"There are no{f' {state}' if state else ''} jobs. "
        "`gptflow run text.chat 'Hello!'` makes one.",
    )


@jobs.command()
@click.argument("job_id")
@json_option
@click.pass_obj
def show(session: Session, job_id: str, as_json: bool) -> None:
    """Show a job or a batch, with its result where there is one."""
    with session.client(needs_queue=True) as client:
        record, result = _look_up(client, job_id)
    fields = dataclasses.asdict(record) | ({"result": result} if result else {})
    if as_json:
        print_json(fields)
    else:
        times = {name: _time(fields.get(name)) for name in _TIMES if name in fields}
        text = json.dumps(fields.pop("result", None), ensure_ascii=False, indent=2)
        shown = fields | times | ({"result": text} if result else {})
        print_table(("field", "value"), shown.items())


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", type=SECONDS, help="Seconds to wait.")
@click.pass_obj
def result(session: Session, job_id: str, timeout: float | None) -> int:
    """Wait for a job and print its result as JSON; a batch's, one line a row.

    The exit code is that of the job's error, and 9 where rows of a batch failed.
    """
    with session.client(needs_queue=True) as client:
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
    with session.client(needs_queue=True) as client:
        stopped = client.cancel(job_id)
    click.echo(f"{job_id} {'is cancelled' if stopped else 'had ended already'}.")
    return 0 if stopped else 8


def _look_up(client: Client, job_id: str) -> tuple[JobRecord | BatchRecord, dict[str, Any] | None]:
    if job_id.startswith("batch_"):
        return client.transport.batch(job_id), None
    record = client.transport.job(job_id)
    try:
        return record, client.transport.result(job_id, 0).as_dict()
    except (JobTimeout, JobNotFound):
        return record, None


def _time(moment: float | None) -> str:
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(record: JobRecord) -> str:
    if record.started is None or record.finished is None:
        return ""
    return f"{record.finished - record.started:.2f}"
