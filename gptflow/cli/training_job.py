"""Trainings through the queue: sent, followed, and done by the process that a worker starts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, exit_code, note, time_text

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.training.order import Job
    from gptflow.training.runs import Run

_PACE = 0.5
"""Seconds between two events of steps that were not evaluated."""

_BUSY = 120.0
"""Seconds for which a run may still be stopping in the process that had it before."""


def enqueue(session: Session, order: Mapping[str, Any]) -> str:
    """Send a training. Returns the job's id."""
    from pydantic import ValidationError

    from gptflow import validation
    from gptflow.errors import InvalidInput
    from gptflow.training.order import TASK, Order

    try:
        made = Order.model_validate(order)
    except ValidationError as error:
        told = validation.explain(error, order, whole="the training")
        raise InvalidInput(f"The training cannot be sent: {told}.") from None
    with session.client(needs_queue=True, training=True) as client:
        return client.submit(TASK, made.model_dump(mode="json", exclude_unset=True), stream=True).id


def follow(client: Client, job_id: str, timeout: float | None, as_json: bool) -> int:
    """Print what a training tells until it ends; its exit code."""
    from gptflow.training.order import describe

    run = ""

    def tell(line: str) -> None:
        nonlocal run
        event = json.loads(line)
        run = event.get("run", run)
        if as_json:
            click.echo(line)
        elif told := describe(event):
            click.echo(told)

    waiting = client.transport.job(job_id)
    if not as_json and waiting.state == "queued":
        click.echo(f"{time_text(time.time())}  queued")
    left = ""
    for event in client.job(job_id).events(timeout=timeout):
        if event.kind == "delta":
            *lines, left = (left + event.text).split("\n")
            for line in lines:
                tell(line)
        elif event.kind in ("reset", "gap"):
            left = ""
            if event.kind == "reset":
                tell(json.dumps({"kind": "note", "text": "Another worker goes on with it."}))
    result = client.job(job_id).wait(timeout)
    record = client.transport.job(job_id)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(record) | {"result": result.as_dict()}))
    else:
        click.echo(f"{time_text(record.finished)}  {record.state}")
        if result.ok:
            _show(result.output)
        elif result.error is not None:
            note(f"error [{result.error.code}]: {result.error.message}")
            if result.error.hint:
                note(f"  {result.error.hint}")
            if run and record.state == "cancelled":
                note(f"`gptflow train --resume {run} --queue` goes on with the run.")
    return exit_code(result)


def _show(output: Mapping[str, Any]) -> None:
    for name, metric in output["metrics"].items():
        floor = "" if metric["floor"] is None else f"  (best simple model: {metric['floor']:.4f})"
        click.echo(f"{name}: {metric['value']:.4f}{floor}")
    if output["version"] is not None:
        click.echo(f"The adapter is {output['version']}.")


# In the process that a worker starts.


def run_job(session: Session, path: Path) -> int:
    """Train for a job, and tell of it on standard output, one JSON object a line."""
    from gptflow.cli.training_run import train_run
    from gptflow.errors import GPTFlowError
    from gptflow.training.order import Job

    job = Job.model_validate_json(path.read_bytes())
    try:
        run = _run_of(session, job)
        _tell("run", run=run.folder.name, pid=os.getpid())
        _wait_for(run)
        record = run.record
        if record.state != "done":  # or else the worker died before it could say so
            record = train_run(session, run, _telling(run))
    except GPTFlowError as error:
        _tell("error", error={"code": error.code, "message": error.message, "hint": error.hint})
        return error.exit_code
    _tell("done", record=record.model_dump(mode="json"))
    return 0


def _run_of(session: Session, job: Job) -> Run:
    """The job's run: begun earlier, named by the order, or new."""
    from gptflow.cli.training_run import begin_run, run_table
    from gptflow.errors import ConfigError
    from gptflow.training.order import require_allowed

    order, settings = job.order, session.settings()
    runs = run_table(session)
    if order.run is not None:
        run = runs.find(order.run)
        require_allowed(run.record.data, settings.train_data)
        return run
    require_allowed(order.data, settings.train_data)
    for run in runs.list():
        if run.record.job == job.id:
            return run
    if order.model != settings.model:
        raise ConfigError(
            f"The training is of the model {order.model!r}, and this worker has "
            f"{settings.model!r}.",
            hint=f"Start one with `GPTFLOW_MODEL={order.model} gptflow worker --train`.",
        )
    return begin_run(
        session,
        order.task,
        order.data,
        order.settings.model_dump(exclude_unset=True),
        order.adapter,
        order.gates,
        None,
        order.track,
        order.parent,
        False,
        job=job.id,
    )


def _wait_for(run: Run) -> None:
    """Let the process stop that had the run before: its worker may be gone sooner than it."""
    until = time.monotonic() + _BUSY
    while run.state == "running" and time.monotonic() < until:
        time.sleep(0.2)


@contextlib.contextmanager
def _telling(run: Run) -> Iterator[Any]:
    """Tell how it goes; stop after the step in which TERM comes."""
    from gptflow.cli.training_run import stoppable
    from gptflow.training.sitting import Watch

    told = 0.0

    def due() -> bool:
        nonlocal told
        if time.monotonic() - told < _PACE:
            return False
        told = time.monotonic()
        return True

    with stoppable(f"gptflow train --resume {run.folder.name}") as check:

        def update(made: Any) -> None:
            if due() or made.figures is not None or made.step == made.steps:
                _tell("step", **dataclasses.asdict(made))
            check()

        def lower(done: int, total: int) -> None:
            if due() or done == total:
                _tell("lower", done=done, total=total)
            check()

        yield Watch(update=update, note=lambda text: _tell("note", text=text), lower=lower)


def _tell(kind: str, **fields: Any) -> None:
    click.echo(json.dumps({"kind": kind, **fields}))
