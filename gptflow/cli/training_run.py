"""A training from the command line: begun, done in this process, and told of."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, note, progress

if TYPE_CHECKING:
    from gptflow.plugins import AnyTask
    from gptflow.training.runs import DataFile, Run, RunRecord, RunTable
    from gptflow.training.settings import TrainingSettings


def begin_run(
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
    *,
    job: str | None = None,
) -> Run:
    """A new run in this machine's table."""
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.feedback import FeedbackTable
    from gptflow.training.parent import Parent
    from gptflow.training.training import begin

    settings = session.settings(model=model)
    known = session.registry(settings, warn=True).task(task)
    base = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    found = None
    if parent is not None:
        found = Parent.find(AdapterStore(settings.adapters_dir), parent, base)
    table = run_table(session)
    files = list(files)
    if feedback:
        given_rows = FeedbackTable(settings.data_dir / "feedback")
        taken = given_rows.data_file(known, table, None if found is None else found.run)
        if other := next((file for file in files if file.kind != taken.kind), None):
            raise click.UsageError(f"{other.path} holds {other.kind}, and feedback {taken.kind}.")
        files.append(taken)
    return begin(
        table,
        known,
        base,
        files,
        settings_of(files[0].kind, given),
        adapter=adapter,
        gates=gates,
        track=track or settings.track,
        parent=found,
        job=job,
    )


def settings_of(kind: str, given: Mapping[str, Any]) -> TrainingSettings:
    """Settings for rows of a kind, of values of which None means the default."""
    from gptflow.training.settings import BY_KIND, TrainingSettings

    chosen = {name: value for name, value in given.items() if value is not None}
    return TrainingSettings.of(**{**BY_KIND.get(kind, {}), **chosen})


def train_run(session: Session, run: Run, watching: AbstractContextManager[Any]) -> RunRecord:
    """Train a run in this process."""
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.training import train as go_on

    settings = session.settings()
    before = run.record
    known = ready(session, before.task) if before.task else None
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    with watching as watch:
        return go_on(
            run,
            known,
            ModelStore(settings.cache_dir, offline=settings.offline).find(before.model_folder),
            AdapterStore(settings.adapters_dir),
            context=settings.slot_tokens,
            watch=watch,
        )


def ready(session: Session, task: str) -> AnyTask:
    """The task, set up as a worker does it."""
    from gptflow.executor import Executor
    from gptflow.testing import ScriptedEngine

    settings = session.settings()
    registry = session.registry(settings, warn=True)
    Executor(ScriptedEngine(), registry, settings=settings).setup([registry.task(task).name])
    return registry.task(task)


def first_process() -> bool:
    """Whether this is the one of several processes that tells how it goes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def watching(resume: str) -> Iterator[Any]:
    """Show how it goes; the first Ctrl-C or TERM stops the run after the step that it is in.

    Args:
        resume: the command that goes on.
    """
    from gptflow.training.sitting import Watch

    with contextlib.ExitStack() as stack:
        check = stack.enter_context(stoppable(resume))
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

        def stage(name: str, done: int, total: int) -> None:
            show(name, done, total, "examples")
            check()

        if first_process():
            yield Watch(update=update, note=note, lower=lower, stage=stage)
        else:
            yield Watch(
                update=lambda made: check(),
                lower=lambda done, total: check(),
                stage=lambda name, done, total: check(),
            )


@contextlib.contextmanager
def stoppable(resume: str) -> Iterator[Callable[[], None]]:
    """A function to call after each step, which raises where the process is to stop."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])  # a second one ends the process at once

    def check() -> None:
        if stopped:
            note(f"Stopped. `{resume}` goes on.")
            raise KeyboardInterrupt

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_table(session: Session) -> RunTable:
    """The trainings on this machine."""
    from gptflow.training.runs import RunTable

    return RunTable(session.settings().data_dir / "runs")


def tell(record: RunRecord) -> None:
    for name, metric in record.metrics.items():
        floor = "" if metric.floor is None else f"  (best simple model: {metric.floor:.4f})"
        click.echo(f"{name}: {metric.value:.4f}{floor}")
    for words in record.warnings:
        note(f"warning: {words}")
    if record.trained_model is not None:
        click.echo(f"The model is in {record.trained_model}.")
        click.echo(f"  gptflow models pull {record.trained_model}")
    if record.version is not None:
        click.echo(f"The adapter is {record.version}.")
        click.echo(f"  gptflow adapters promote {record.version}")
