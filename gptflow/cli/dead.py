"""`gptflow dead`: jobs whose worker died each time that it ran them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table, time_text

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.errors import ErrorInfo
    from gptflow.transport import JobRecord

_ALL = 10_000
"""Dead jobs to take at once."""

all_option = click.option("--all", "all_", is_flag=True, help="All dead jobs.")
ids_argument = click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)


@click.group(short_help="Show, replay and purge jobs that killed their workers.")
def dead() -> None:
    """Show, replay and purge jobs that killed their workers.

    A job is dead when its worker has died three times while it ran, the last time with nothing
    else in hand. It is kept for `dead_ttl` seconds.
    """


@dead.command("list")
@click.option("--limit", type=click.IntRange(1, _ALL), default=20, show_default=True)
@json_option
@click.pass_obj
def list_(session: Session, limit: int, as_json: bool) -> None:
    """List dead jobs and why they are dead, the newest first."""
    with session.client(needs_queue=True) as client:
        found = [(record, _error(client, record)) for record in client.transport.dead(limit)]
    if as_json:
        print_json([_as_dict(record, error) for record, error in found])
        return
    print_table(
        ("id", "task", "tenant", "crashes", "died", "code", "reason"),
        (
            (
                record.id,
                record.task,
                record.tenant,
                record.crashes,
                time_text(record.finished),
                error.code if error else None,
                error.message if error else None,
            )
            for record, error in found
        ),
        empty="There are no dead jobs.",
    )


@dead.command()
@click.argument("job_id")
@click.option("--input", "with_input", is_flag=True, help="Show what the job was given, too.")
@json_option
@click.pass_obj
def show(session: Session, job_id: str, with_input: bool, as_json: bool) -> None:
    """Show why a job is dead, and its last worker's log."""
    with session.client(needs_queue=True) as client:
        record = _dead(client, job_id)
        error = _error(client, record)
        log = client.transport.last_words(job_id).splitlines()
        fields = _as_dict(record, error) | {"log": log}
        if with_input:
            fields["input"] = client.transport.job_input(job_id)
    if as_json:
        print_json(fields)
        return
    shown = {name: value for name, value in fields.items() if name not in ("error", "log")}
    for name in ("submitted", "started", "finished"):
        shown[name] = time_text(shown[name])
    if error is not None:
        shown |= {"code": error.code, "reason": error.message}
    if with_input:
        shown["input"] = json.dumps(fields["input"], ensure_ascii=False, indent=2)
    print_table(("field", "value"), shown.items())
    if log:
        click.echo("The last lines of the worker's log:")
        for line in log:
            click.echo(f"  {line}")
    else:
        note("Its last worker left no log.")


@dead.command()
@ids_argument
@all_option
@json_option
@click.pass_obj
def replay(session: Session, job_ids: tuple[str, ...], all_: bool, as_json: bool) -> int:
    """Enqueue dead jobs once more, as if they had never run.

    They have no deadline any more. Exit code 8 if one of them was not dead.
    """
    with session.client(needs_queue=True) as client:
        ids = _chosen(client, job_ids, all_)
        replayed = [i for i in ids if _is_dead(client, i) and client.transport.revive(i)]
    return _tell(ids, replayed, as_json, "replayed", "is queued again")


@dead.command()
@ids_argument
@all_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def purge(session: Session, job_ids: tuple[str, ...], all_: bool, yes: bool, as_json: bool) -> int:
    """Forget dead jobs, with their inputs and their logs.

    Exit code 8 if one of them was not dead.
    """
    with session.client(needs_queue=True) as client:
        ids = _chosen(client, job_ids, all_)
        if not yes:
            _confirm(len(ids))
        purged = [job_id for job_id in ids if client.transport.purge([job_id])]
    return _tell(ids, purged, as_json, "purged", "is gone")


def _chosen(client: Client, job_ids: Sequence[str], all_: bool) -> list[str]:
    if bool(job_ids) == all_:
        raise click.UsageError("Name jobs, or give --all.")
    if all_:
        return [record.id for record in client.transport.dead(_ALL)]
    return list(dict.fromkeys(job_ids))


def _confirm(count: int) -> None:
    what = f"{count} dead job{'s' if count != 1 else ''}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what} would be forgotten for good: confirm with --yes.")
    click.confirm(f"Forget {what} for good?", abort=True, err=True)


def _tell(ids: Sequence[str], done: Sequence[str], as_json: bool, name: str, outcome: str) -> int:
    """Say what has become of each job; the exit code."""
    others = [job_id for job_id in ids if job_id not in set(done)]
    if as_json:
        print_json({name: list(done), "not_dead": others})
    else:
        for job_id in done:
            click.echo(f"{job_id} {outcome}.")
        for job_id in others:
            note(f"{job_id} is not dead.")
        if not ids:
            note("There are no dead jobs.")
    return 8 if others else 0


def _is_dead(client: Client, job_id: str) -> bool:
    from gptflow.errors import JobNotFound

    try:
        return client.transport.job(job_id).state == "dead"
    except JobNotFound:
        return False


def _dead(client: Client, job_id: str) -> JobRecord:
    from gptflow.errors import JobNotFound

    record = client.transport.job(job_id)
    if record.state != "dead":
        raise JobNotFound(
            f"Job {job_id} is not dead; it is {record.state}.",
            hint="`gptflow dead list` shows the dead ones, `gptflow jobs show` any other.",
        )
    return record


def _error(client: Client, record: JobRecord) -> ErrorInfo | None:
    """Why a job is dead; None where it is no longer."""
    from gptflow.errors import JobNotFound, JobTimeout

    try:
        return client.transport.result(record.id, 0).error
    except (JobNotFound, JobTimeout):
        return None


def _as_dict(record: JobRecord, error: ErrorInfo | None) -> dict[str, Any]:
    return dataclasses.asdict(record) | {"error": error.as_dict() if error else None}
