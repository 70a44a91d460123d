"""`gptflow run`: one task, one input, the answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.inputs import read_input
from gptflow.cli.session import (
    SECONDS,
    Session,
    console,
    exit_code,
    local_option,
    model_option,
    note,
    print_json,
)
from gptflow.errors import TaskNotFound

if TYPE_CHECKING:
    from gptflow.job import Job


@click.command(short_help="Run a task on one input and print the answer.")
@click.argument("task")
@click.argument("input", required=False)
@local_option
@click.option("--stream", is_flag=True, help="Print the text as it is decoded.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random draws.")
@click.option("--timeout", type=SECONDS, default=300.0, show_default=True, help="Seconds to wait.")
@model_option
@click.pass_obj
def run(
    session: Session,
    task: str,
    input: str | None,
    local: bool,
    stream: bool,
    as_json: bool,
    seed: int | None,
    timeout: float,
    model: str | None,
) -> int:
    """Run TASK on INPUT: a text, a JSON object, - for standard input, @FILE.json, or
    @examples for the sample that comes with the task."""
    if stream and as_json:
        raise click.UsageError("--stream and --json do not go together.")
    value = read_input(task, input, lambda: session.registry(session.settings(), warn=True))
    with session.client(local=local, model=model) as client:
        job = client.submit(task, value, seed=seed, stream=stream, job_class="interactive")
        try:
            streamed = stream and _print_stream(job, timeout)
            result = job.wait(timeout)
        except KeyboardInterrupt:
            job.cancel()
            raise click.Abort from None
        except TaskNotFound:
            session.note_stale_worker(task)
            raise
    if result.error is not None and result.error.code == TaskNotFound.code:
        session.note_stale_worker(task)
    if as_json:
        print_json(result.as_dict())
        return exit_code(result)
    output = result.unwrap()
    if not streamed:  # nor where the task has no text to stream
        _print_output(output)
    if result.provenance and result.provenance.truncated:
        note("warning: the input was cut to fit the model's context")
    if result.abstained:
        note(f"abstained: {result.abstained}")
    for warning in result.warnings:
        note(f"warning: {warning}")
    return 0


def _print_stream(job: Job, timeout: float) -> bool:
    """Print the text as it is decoded; whether there was any."""
    streamed = False

    def begin_again() -> None:
        # What is printed stays; the text that counts follows on a line of its own.
        click.echo()
        note("The job was run once more; its text starts again:")

    try:
        for piece in job.stream(timeout, on_reset=begin_again):
            click.echo(piece, nl=False)
            sys.stdout.flush()
            streamed = True
    finally:
        if streamed:
            click.echo()
    return streamed


def _print_output(output: Any) -> None:
    """A text as text; anything else as JSON, coloured on a terminal."""
    if isinstance(output, dict) and set(output) <= {"text", "texts", "finish"}:
        click.echo(output["text"])
    elif sys.stdout.isatty():
        console().print_json(data=output, ensure_ascii=False)
    else:
        print_json(output)
