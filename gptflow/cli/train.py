"""`gptflow train`: from rows to an adapter that can be promoted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json
from gptflow.cli.sources import source_options
from gptflow.cli.training_options import data_files, gates_of, settings_options
from gptflow.cli.training_run import (
    begin_run,
    first_process,
    run_table,
    settings_of,
    tell,
    train_run,
    watching,
)
from gptflow.cli.worker import bound_option

if TYPE_CHECKING:
    from gptflow.training.data.source import Source
    from gptflow.training.runs import DataFile, Run

_FILE = click.Path(path_type=Path)


@click.command(short_help="Train an adapter for a task.")
@click.argument("task", required=False)
@click.option("--data", "data", multiple=True, type=_FILE, help="Rows to train on.")
@click.option("--dev", "dev_files", multiple=True, type=_FILE, help="Rows to choose by.")
@click.option("--test", "test_files", multiple=True, type=_FILE, help="Rows to measure with, once.")
@click.option("--adapter", metavar="ALIAS", help="Where the task's head names several.")
@click.option("--gate", "gates", multiple=True, metavar="FIGURE=VALUE", help="To be promoted.")
@click.option("--data-name", metavar="TEXT", help="For the model card.  [default: the file's]")
@click.option("--licence", metavar="TEXT", default="unknown", help="Of the data.")
@click.option("--model", help="To train.  [default: the settings']")
@click.option(
    "--track",
    multiple=True,
    type=click.Choice(("mlflow", "wandb")),
    help="Show it there too.  [default: the settings']",
)
@click.option(
    "--continue", "parent", metavar="ADAPTER", help="Go on from its weights; or from a folder."
)
@click.option("--feedback", is_flag=True, help="Train on what `gptflow feedback` has collected.")
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, or `last`.")
@click.option(
    "--processes", type=click.IntRange(1), help="That share each batch, one per GPU.  [default: 1]"
)
@click.option("--queue", is_flag=True, help="Have a worker do it: `gptflow worker --train`.")
@click.option("--job", hidden=True, type=_FILE, help="Train for a job of the queue.")
@bound_option
@settings_options()
@source_options
@json_option
@click.pass_obj
def train(
    session: Session,
    /,
    task: str | None,
    data: tuple[Path, ...],
    dev_files: tuple[Path, ...],
    test_files: tuple[Path, ...],
    adapter: str | None,
    gates: tuple[str, ...],
    data_name: str | None,
    licence: str,
    model: str | None,
    track: tuple[str, ...],
    parent: str | None,
    feedback: bool,
    resume: str | None,
    processes: int | None,
    queue: bool,
    job: Path | None,
    kind: str | None,
    source: Source,
    as_json: bool,
    **settings: Any,
) -> int | None:
    """Train an adapter for TASK and put it into the store, where it can be promoted.

    The prompts are those that a worker would make. A run that is killed, or stopped with Ctrl-C,
    goes on with --resume as if nothing had been.
    """
    if job is not None:
        from gptflow.cli.training_job import run_job

        return run_job(session, job)
    if resume is not None:
        if task is not None or data or parent is not None or feedback:
            raise click.UsageError("--resume takes a run's task, data and settings from the run.")
        if queue:
            _enqueue(session, {"run": resume}, as_json)
            return None
        run = run_table(session).find(resume)
    elif task is None or not (data or feedback):
        raise click.UsageError("Say what to train, and on what: `gptflow train TASK --data FILE`.")
    else:
        if parent is None and (settings["replay"] is not None or settings["ewc"] is not None):
            raise click.UsageError("--replay and --ewc go with --continue ADAPTER.")
        files = data_files(data, dev_files, test_files, kind, source, data_name or "", licence)
        what = (task, files, settings, adapter, gates_of(gates), model, track, parent, feedback)
        if queue:
            _enqueue(session, order_of(session, *what), as_json)
            return None
        device = settings["device"]
        run = _begin_together(session, lambda: begin_run(session, *what), device)
    if processes is not None and processes > 1:
        return _launch(session, run, processes, as_json)
    record = train_run(session, run, watching(f"gptflow train --resume {run.folder.name}"))
    if not first_process():
        return None
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        tell(record)
    return None


def _begin_together(session: Session, begin: Callable[[], Run], device: str | None) -> Run:
    """A new run, begun by the first of the processes that this one was launched with."""
    from gptflow.training.processes import Processes

    together = Processes.launched(device or "auto")
    name = None
    if together.first:
        name = begin().folder.name
        note(f"run {name}")
    return run_table(session).find(together.tell(name))


def _launch(session: Session, run: Run, processes: int, as_json: bool) -> int:
    """Train a run in several processes, which all go on with it."""
    import subprocess

    import torch

    from gptflow.training.processes import launch_command

    run_it = ["train", "--resume", run.folder.name, *["--json"] * as_json]
    # On a CPU they would else use all of its cores each.
    threads = max(1, torch.get_num_threads() // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    command = launch_command(processes, ["--module", "gptflow", *session.options, *run_it])
    # In a session of their own: each gets one signal, and stops after its step.
    with subprocess.Popen(command, env=environment, start_new_session=True) as launched:
        before = {
            number: signal.signal(number, lambda *_: launched.send_signal(signal.SIGTERM))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            launched.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if run.state == "interrupted":
        raise click.Abort
    return launched.returncode


def order_of(
    session: Session,
    task: str,
    files: Sequence[DataFile],
    given: Mapping[str, Any],
    adapter: str | None,
    gates: Mapping[str, float],
    model: str | None,
    track: Sequence[str],
    parent: str | None,
    feedback: bool,
) -> dict[str, Any]:
    """A training as it travels."""
    settings = session.settings(model=model)
    if feedback:
        raise click.UsageError(
            "Feedback lies on this machine: --feedback and --queue exclude each other."
        )
    chosen = settings_of(files[0].kind, given)
    return {
        "task": session.registry(settings, warn=True).task(task).name,
        "adapter": adapter,
        "model": settings.model,
        "data": [file.model_dump(mode="json") for file in files],
        "settings": chosen.model_dump(mode="json", exclude_unset=True),
        "gates": dict(gates),
        "track": list(track),
        "parent": parent,
    }


def _enqueue(session: Session, order: Mapping[str, Any], as_json: bool) -> None:
    from gptflow.cli.training_job import enqueue

    job_id = enqueue(session, order)
    if as_json:
        print_json({"job": job_id})
    else:
        click.echo(job_id)
        note(f"`gptflow jobs watch {job_id}` follows it; `gptflow worker --train` does it.")
