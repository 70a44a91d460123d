"""`gptflow submit`: one task on every row of a file."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptflow.cli.broken_off import BrokenOff
from gptflow.cli.rows import Row, Survey, read_rows, survey
from gptflow.cli.session import (
    PARTIAL,
    SECONDS,
    Session,
    local_option,
    model_option,
    note,
    print_json,
    progress,
)
from gptflow.errors import (
    GPTFlowError,
    InvalidInput,
    JobNotFound,
    JobTimeout,
    QueueFull,
    TaskNotFound,
)
from gptflow.result import from_info

if TYPE_CHECKING:
    from gptflow.cli.outputs import Outputs
    from gptflow.client import Client
    from gptflow.open_batch import OpenBatch

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Run a task on every row of a JSONL file.")
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--out", type=_PATH, help="Where results go.")
@click.option("--errors", type=_PATH, help="Where the lines of failed rows go as well.")
@click.option("--wait", is_flag=True, help="Wait for the results; --out implies it.")
@click.option("--resume", is_flag=True, help="Go on with --out where an earlier run broke off.")
@click.option("--batch", "batch_id", metavar="ID", help="Go on with a batch of the same FILE.")
@click.option("--tenant", help="Who the rows are for.  [default: default]")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random draws.")
@click.option("--timeout", type=SECONDS, default=600.0, show_default=True, help="Longest silence.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@local_option
@model_option
@click.pass_obj
def submit(
    session: Session,
    task: str,
    file: str,
    out: Path | None,
    errors: Path | None,
    wait: bool,
    resume: bool,
    batch_id: str | None,
    tenant: str | None,
    seed: int | None,
    timeout: float,
    as_json: bool,
    local: bool,
    model: str | None,
) -> int:
    """Run TASK on every row of FILE, a JSONL file of inputs or of {"custom_id", "input"}.

    The output has one line a row, in the rows' order: custom_id, output, error, provenance.
    A row that fails does not stop the others; the exit code is then 9. What broke off goes on
    with --resume: rows that have a result are not run again.
    """
    _check_options(file, out, errors, resume, batch_id)
    settings = session.settings(model=model)
    known = survey(file)
    rows = read_rows(file, settings.max_payload)
    first = next(rows, None)
    if first is None:
        raise InvalidInput(f"{file} has no rows.")
    rows = itertools.chain([first], rows)
    with session.client(local=local, model=model) as client:
        here = client.settings.broker_url == "memory://"
        if not (wait or out or batch_id or here):
            opened = client.open_batch(task, tenant=tenant or "default", seed=seed, wait=False)
            return _leave(opened, rows, errors, as_json)
        plan = BrokenOff(
            batch=batch_id or "",
            task=task,
            tenant=tenant or "",
            seed=seed,
            sha256=known.sha256 if known else None,
            begun=0,
        )
        return _Run(session, client, out, errors, known, as_json).run(rows, plan, resume, timeout)


def _check_options(
    file: str, out: Path | None, errors: Path | None, resume: bool, batch_id: str | None
) -> None:
    for name, path in (("--out", out), ("--errors", errors)):
        if path is not None and file != "-" and path.exists() and path.samefile(file):
            raise click.UsageError(f"{name} is the input file.")
    if out is not None and errors is not None and out.resolve() == errors.resolve():
        raise click.UsageError("--out and --errors are the same file.")
    if resume and out is None:
        raise click.UsageError("--resume goes with --out, or give the batch: --batch ID.")
    if (resume or batch_id) and not Path(file).is_file():
        raise click.UsageError("Going on needs the same rows again: FILE must be a file.")
    if out is not None and out.exists() and not (resume or batch_id) and BrokenOff.read(out):
        raise click.UsageError(
            f"{out} is of a run that broke off. Go on with --resume, or delete it to start again."
        )


def _leave(batch: OpenBatch, rows: Iterator[Row], errors: Path | None, as_json: bool) -> int:
    """Send the rows and leave them to the queue."""
    from gptflow.cli.outputs import Outputs
    from gptflow.cli.submission import Submission

    # The outputs hold what is wrong with bad rows; the results are asked for later.
    outputs = Outputs(Path("/dev/null"), errors)
    submission = Submission(rows, batch, outputs)
    try:
        submission.send()
    except KeyboardInterrupt:
        batch.cancel()
        raise click.Abort from None
    except QueueFull as full:
        hint = f"Try again in {full.retry_after:g} seconds; --wait does so by itself."
        raise QueueFull(full.message, retry_after=full.retry_after, hint=hint) from None
    finally:
        outputs.close()
    bad = submission.refused
    if not batch.count:
        note(f"None of the {bad} rows can be sent.")
    elif as_json:
        print_json({"batch": batch.id, "rows": batch.count, "bad_rows": bad})
    else:
        click.echo(batch.id)
    return PARTIAL if bad else 0


class _Run:
    """A call of the command that waits for the results."""

    def __init__(
        self,
        session: Session,
        client: Client,
        out: Path | None,
        errors: Path | None,
        known: Survey | None,
        as_json: bool,
    ) -> None:
        self._session = session
        self._client = client
        self._out = out
        self._errors = errors
        self._known = known
        self._as_json = as_json
        self._keeps_note = out is not None and (out.is_file() or not out.exists())

    def run(self, rows: Iterator[Row], plan: BrokenOff, resume: bool, timeout: float) -> int:
        from gptflow.cli.outputs import Outputs

        earlier = self._earlier(plan) if resume or plan.batch else None
        # Opened first: a file that cannot be written is found out before any work is done.
        outputs = Outputs(self._out, self._errors, resume=resume or bool(plan.batch))
        try:
            batch, plan = self._open(outputs, plan, earlier)
            started = time.monotonic()
            code = self._submit(rows, batch, outputs, plan, timeout)
            outputs.finish()
            if self._keeps_note and self._out is not None:
                BrokenOff.remove(self._out)
            self._summarise(outputs, time.monotonic() - started)
        finally:
            # Whatever happened, what has ended is not lost.
            outputs.close()
        return code

    def _earlier(self, plan: BrokenOff) -> BrokenOff | None:
        """The note of the run that broke off; what was asked for now must fit it."""
        found = BrokenOff.read(self._out) if self._keeps_note and self._out is not None else None
        if found is None:
            return None
        if plan.batch and plan.batch != found.batch:
            raise click.UsageError(f"{self._out} is of another batch: {found.batch}.")
        if plan.task != found.task or (plan.tenant and plan.tenant != found.tenant):
            raise click.UsageError(
                f"{self._out} is of task {found.task!r} for tenant {found.tenant!r}."
            )
        if plan.sha256 != found.sha256:
            raise InvalidInput(
                f"The input is not the file that {self._out} was begun with.",
                hint="Put that file back, or give another --out.",
            )
        return found

    def _open(
        self, outputs: Outputs, plan: BrokenOff, earlier: BrokenOff | None
    ) -> tuple[OpenBatch, BrokenOff]:
        """The batch of an earlier run, or a new one for the rows that have no result yet."""
        import dataclasses

        if earlier is not None:
            plan = dataclasses.replace(
                earlier, seed=earlier.seed if plan.seed is None else plan.seed
            )
        batch_id = plan.batch or None
        if batch_id is not None and not self._goes_on(batch_id, outputs, plan, earlier is not None):
            batch_id = None
        tenant = plan.tenant or "default"
        batch = self._client.open_batch(plan.task, tenant=tenant, seed=plan.seed, batch_id=batch_id)
        begun = plan.begun if batch_id is not None else outputs.size
        plan = dataclasses.replace(plan, batch=batch.id, tenant=tenant, begun=begun)
        if self._keeps_note and self._out is not None:
            plan.write(self._out)
        return batch, plan

    def _goes_on(self, batch_id: str, outputs: Outputs, plan: BrokenOff, noted: bool) -> bool:
        """Whether an earlier batch takes the rest. If not, the results it has are saved."""
        try:
            record = self._client.transport.batch(batch_id)
        except JobNotFound:
            if not noted:  # it was asked for by name
                raise
            return False
        if record.task != plan.task:
            raise click.UsageError(f"Batch {batch_id} is of task {record.task!r}.")
        if not record.cancelled and outputs.size >= plan.begun:
            return True
        self._client.cancel(batch_id)
        try:
            for _, result in self._client.batch(batch_id).as_completed(0.001):
                known = result.custom_id is None or outputs.index.line(result.custom_id)
                if not known and result.state != "cancelled":
                    outputs.write(result.as_row())
        except JobTimeout:
            pass
        return False

    def _submit(
        self,
        rows: Iterator[Row],
        batch: OpenBatch,
        outputs: Outputs,
        plan: BrokenOff,
        timeout: float,
    ) -> int:
        from gptflow.cli.submission import Submission

        submission = Submission(rows, batch, outputs, begun=plan.begun)
        total = self._known.rows if self._known else None
        try:
            with progress("Batch", total) as update:
                submission.run(timeout, update)
        except KeyboardInterrupt:
            batch.cancel()
            self._tell_how_to_go_on(batch)
            raise click.Abort from None
        except (GPTFlowError, OSError):
            self._tell_how_to_go_on(batch)
            raise
        count, ended, failed = outputs.index.counts()
        if ended < count:
            raise InvalidInput(
                f"{count - ended} rows have no result in batch {batch.id}: "
                "the input is not what it was made of."
            )
        unknown = submission.codes[TaskNotFound.code]
        if submission.sample is not None and unknown == count - submission.refused:
            outputs.finish()
            if self._keeps_note and self._out is not None:
                BrokenOff.remove(self._out)
            self._session.note_stale_worker(plan.task)
            raise from_info(submission.sample)
        return PARTIAL if failed else 0

    def _tell_how_to_go_on(self, batch: OpenBatch) -> None:
        if self._client.settings.broker_url == "memory://" and not self._keeps_note:
            return
        if batch.count:
            way = "--resume" if self._keeps_note else f"--batch {batch.id}"
            note(f"To go on where this ended, give the same command with {way}.")

    def _summarise(self, outputs: Outputs, seconds: float) -> None:
        rows, _, failed = outputs.index.counts()
        if self._as_json and self._out:
            print_json({"rows": rows, "failed": failed, "seconds": round(seconds, 3)})
        else:
            note(
                f"{rows} row{'s' if rows > 1 else ''}: {rows - failed} done, {failed} failed "
                f"in {seconds:.1f} s ({rows / seconds:.1f} rows/s)."
            )
