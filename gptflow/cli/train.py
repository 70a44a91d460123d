"""`gptflow train`: from rows to an adapter that can be promoted."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Number, Session, json_option, note, print_json, progress
from gptflow.cli.sources import source_options
from gptflow.cli.worker import bound_option

if TYPE_CHECKING:
    from gptflow.plugins import AnyTask
    from gptflow.training.data.source import Source
    from gptflow.training.runs import DataFile, Run, RunRecord, RunTable

_FILE = click.Path(path_type=Path)
_POSITIVE = Number("number", least=0, above=True)
_NOT_NEGATIVE = Number("number", least=0)

_SETTINGS = (
    click.option(
        "--method",
        type=click.Choice(("lora", "head", "full")),
        help="What is trained: LoRA and a head, the head alone, all weights.  [default: lora]",
    ),
    click.option("--rank", type=click.IntRange(1, 512), help="Of LoRA.  [default: 16]"),
    click.option("--alpha", type=_POSITIVE, help="Of LoRA.  [default: twice the rank]"),
    click.option("--dropout", type=_NOT_NEGATIVE, help="Of LoRA.  [default: 0.05]"),
    click.option(
        "--layers",
        type=click.Choice(("all", "upper")),
        help="With LoRA; `upper` computes the lower half once.  [default: all]",
    ),
    click.option("--pooling", type=click.Choice(("last", "mean")), help="[default: last]"),
    click.option("--learning-rate", type=_POSITIVE, help="[default: 3e-4]"),
    click.option("--head-learning-rate", type=_POSITIVE, help="[default: 1e-3]"),
    click.option("--weight-decay", type=_NOT_NEGATIVE, help="[default: 0]"),
    click.option("--epochs", type=_POSITIVE, help="[default: 3]"),
    click.option("--batch", type=click.IntRange(1), help="Examples a step.  [default: 32]"),
    click.option(
        "--batch-tokens", type=click.IntRange(16), help="Tokens a forward pass.  [default: 2048]"
    ),
    click.option("--precision", type=click.Choice(("fp32", "bf16")), help="[default: fp32]"),
    click.option("--evaluations", type=click.IntRange(1), help="An epoch.  [default: 2]"),
    click.option(
        "--patience", type=click.IntRange(1), help="Evaluations to wait for better.  [default: 3]"
    ),
    click.option("--dev-share", "dev", type=_POSITIVE, help="Of the rows.  [default: 0.1]"),
    click.option("--class-weights", is_flag=True, default=None, help="Rare labels weigh more."),
    click.option("--pairwise/--pointwise", default=None, help="Of scores.  [default: pairwise]"),
    click.option(
        "--serve-floor/--no-serve-floor",
        default=None,
        help="Where a simple model is as good, it answers.  [default: it does]",
    ),
    click.option("--checkpoint-minutes", type=_NOT_NEGATIVE, help="[default: 3]"),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="[default: 0]"),
    click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), help="[default: auto]"),
)


def _with_settings(command: Any) -> Any:
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


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
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, or `last`.")
@click.option(
    "--processes", type=click.IntRange(1), help="That share each batch, one per GPU.  [default: 1]"
)
@click.option("--queue", is_flag=True, help="Have a worker do it: `gptflow worker --train`.")
@click.option("--job", hidden=True, type=_FILE, help="Train for a job of the queue.")
@bound_option
@_with_settings
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
        if task is not None or data:
            raise click.UsageError("--resume takes a run's task, data and settings from the run.")
        if queue:
            _enqueue(session, {"run": resume}, as_json)
            return None
        run = table(session).find(resume)
    elif task is None or not data:
        raise click.UsageError("Say what to train, and on what: `gptflow train TASK --data FILE`.")
    else:
        files = _files(data, dev_files, test_files, kind, source, data_name or "", licence)
        if queue:
            order = order_of(session, task, files, settings, adapter, read_gates(gates), model)
            _enqueue(session, order, as_json)
            return None
        run = _begin_together(
            session,
            lambda: begin_here(session, task, files, settings, adapter, read_gates(gates), model),
            settings["device"],
        )
    if processes is not None and processes > 1:
        return _launch(session, run, processes, as_json)
    record = train_here(session, run, watching(run))
    if not first_process():
        return None
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        _tell(record)
    return None


def begin_here(
    session: Session,
    task: str,
    files: Sequence[DataFile],
    given: Mapping[str, Any],
    adapter: str | None,
    gates: Mapping[str, float],
    model: str | None,
    *,
    job: str | None = None,
) -> Run:
    """A new run in this machine's table."""
    from gptflow.models import ModelStore
    from gptflow.training.settings import TrainingSettings
    from gptflow.training.training import begin

    settings = session.settings(model=model)
    known = session.registry(settings, warn=True).task(task)
    store = ModelStore(settings.cache_dir, offline=settings.offline)
    return begin(
        table(session),
        known,
        store.find(settings.model),
        files,
        TrainingSettings.of(**given),
        adapter=adapter,
        gates=gates,
        job=job,
    )


def first_process() -> bool:
    """Whether this is the one of several processes that tells how it goes."""
    return int(os.environ.get("RANK", "0")) == 0


def _begin_together(session: Session, begin: Callable[[], Run], device: str | None) -> Run:
    """A new run, begun by the first of the processes that this one was launched with."""
    from gptflow.training.processes import Processes

    together = Processes.launched(device or "auto")
    name = None
    if together.first:
        name = begin().folder.name
        note(f"run {name}")
    return table(session).find(together.tell(name))


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
) -> dict[str, Any]:
    """A training as it travels."""
    from gptflow.training.settings import TrainingSettings

    settings = session.settings(model=model)
    return {
        "task": session.registry(settings, warn=True).task(task).name,
        "adapter": adapter,
        "model": settings.model,
        "data": [file.model_dump(mode="json") for file in files],
        "settings": TrainingSettings.of(**given).model_dump(mode="json"),
        "gates": dict(gates),
    }


def _enqueue(session: Session, order: Mapping[str, Any], as_json: bool) -> None:
    from gptflow.cli.training_job import enqueue

    job_id = enqueue(session, order)
    if as_json:
        print_json({"job": job_id})
    else:
        click.echo(job_id)
        note(f"`gptflow jobs watch {job_id}` follows it; `gptflow worker --train` does it.")


def train_here(session: Session, run: Run, watching: AbstractContextManager[Any]) -> RunRecord:
    """Train a run in this process."""
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.training import train as train_run

    settings = session.settings()
    before = run.record
    known = _ready(session, before.task)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    with watching as watch:
        return train_run(
            run,
            known,
            ModelStore(settings.cache_dir, offline=settings.offline).find(before.model_folder),
            AdapterStore(settings.adapters_dir),
            context=settings.slot_tokens,
            watch=watch,
        )


def _ready(session: Session, task: str) -> AnyTask:
    """The task, set up as a worker does it."""
    from gptflow.executor import Executor
    from gptflow.testing import ScriptedEngine

    settings = session.settings()
    registry = session.registry(settings, warn=True)
    Executor(ScriptedEngine(), registry, settings=settings).setup([registry.task(task).name])
    return registry.task(task)


@contextlib.contextmanager
def watching(run: Run) -> Iterator[Any]:
    """Show how it goes; the first Ctrl-C or TERM stops the run after the step that it is in."""
    from gptflow.training.training import Watch

    with contextlib.ExitStack() as stack:
        check = stack.enter_context(stoppable(run))
        bars: dict[str, Callable[[int], None]] = {}

        def show(title: str, done: int, total: int, unit: str) -> None:
            if title not in bars:
                bars[title] = stack.enter_context(progress(title, total, unit))
            bars[title](done)

        def update(made: Any) -> None:
            show("training", made.step, made.steps, "steps")
            if made.figures is not None:
                figures = ", ".join(f"{n} {value:.4f}" for n, value in made.figures.items())
                note(
                    f"step {made.step}/{made.steps}: loss {made.loss:.4f}, {figures}, "
                    f"{made.tokens_per_s:.0f} tokens/s"
                )
            check()

        def lower(done: int, total: int) -> None:
            show("lower layers", done, total, "tokens")
            check()

        if first_process():
            yield Watch(update=update, note=note, lower=lower)
        else:
            yield Watch(update=lambda made: check(), lower=lambda done, total: check())


@contextlib.contextmanager
def stoppable(run: Run) -> Iterator[Callable[[], None]]:
    """A function to call after each step, which raises where the process is to stop."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])  # a second one ends the process at once

    def check() -> None:
        if stopped:
            note(f"Stopped. `gptflow train --resume {run.folder.name}` goes on.")
            raise KeyboardInterrupt

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check
    except KeyboardInterrupt:
        raise click.Abort from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _files(
    data: Sequence[Path],
    dev: Sequence[Path],
    test: Sequence[Path],
    kind: Any,
    source: Source,
    name: str,
    licence: str,
) -> list[DataFile]:
    from gptflow.training.data.reading import guess_kind
    from gptflow.training.training import data_file

    files = [
        (part, path, own_labels(path, source))
        for part, paths in (("train", data), ("dev", dev), ("test", test))
        for path in paths
    ]
    known = {head for _, _, own in files for head in own.labels}
    if missing := sorted(source.labels.keys() - known):
        raise click.UsageError(
            f"No file has the field {source.labels[missing[0]]!r} of the head {missing[0]!r}."
        )
    return [
        data_file(path, part, kind or guess_kind(path, own), own, name=name, licence=licence)
        for part, path, own in files
    ]


def own_labels(path: Path, source: Source) -> Source:
    """A file of a data set that knows some of the heads only: the others are masked there."""
    import dataclasses

    from gptflow.training.data.reading import fields_of

    if len(source.labels) < 2 or not path.is_file():
        return source
    fields = fields_of(path, source)
    own = {head: field for head, field in source.labels.items() if field in fields}
    return dataclasses.replace(source, labels=own)


def read_gates(given: Sequence[str]) -> dict[str, float]:
    """The values of `--gate FIGURE=VALUE`."""
    gates = {}
    for each in given:
        figure, _, value = each.partition("=")
        try:
            gates[figure] = float(value)
        except ValueError:
            raise click.UsageError(f"--gate is FIGURE=VALUE, not {each!r}.") from None
    return gates


def table(session: Session) -> RunTable:
    """The trainings on this machine."""
    from gptflow.training.runs import RunTable

    return RunTable(session.settings().data_dir / "runs")


def _tell(record: RunRecord) -> None:
    for name, metric in record.metrics.items():
        floor = "" if metric.floor is None else f"  (best simple model: {metric.floor:.4f})"
        click.echo(f"{name}: {metric.value:.4f}{floor}")
    if record.trained_model is not None:
        click.echo(f"The model is in {record.trained_model}.")
        click.echo(f"  gptflow models pull {record.trained_model}")
    if record.version is not None:
        click.echo(f"The adapter is {record.version}.")
        click.echo(f"  gptflow adapters promote {record.version}")
