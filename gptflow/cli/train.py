"""`gptflow train`: from rows to an adapter that can be promoted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Number, Session, json_option, note, print_json, progress
from gptflow.cli.sources import source_options

if TYPE_CHECKING:
    from gptflow.plugins import AnyTask
    from gptflow.training.data.source import Source
    from gptflow.training.runs import DataFile, Run, RunRecord

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
    click.option("--learning-rate", type=_POSITIVE, help="[default: 3e-4; of preferences 5e-5]"),
    click.option("--head-learning-rate", type=_POSITIVE, help="[default: 1e-3]"),
    click.option("--weight-decay", type=_NOT_NEGATIVE, help="[default: 0]"),
    click.option("--warmup", type=_NOT_NEGATIVE, help="Share of the steps.  [default: 0.05]"),
    click.option("--clip", type=_POSITIVE, help="Longest gradient.  [default: 1]"),
    click.option("--epochs", type=_POSITIVE, help="[default: 3; of preferences and raw text 1]"),
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
    click.option(
        "--keep-repeats",
        is_flag=True,
        default=None,
        help="Train on rows that repeat others, or rows of the test.",
    ),
    click.option("--class-weights", is_flag=True, default=None, help="Rare labels weigh more."),
    click.option(
        "--in-scope",
        type=_POSITIVE,
        metavar="SHARE",
        help="Of the development rows whose energy a text needs to be about any label.",
    ),
    click.option("--pairwise/--pointwise", default=None, help="Of scores.  [default: pairwise]"),
    click.option(
        "--adversarial",
        type=click.Choice(("fgm", "pgd", "freelb")),
        help="Also learn from what raises the loss most nearby.",
    ),
    click.option("--epsilon", type=_POSITIVE, help="How far to look, in tokens.  [default: 1]"),
    click.option(
        "--adversarial-steps", type=click.IntRange(2, 32), help="Of pgd and freelb.  [default: 3]"
    ),
    click.option(
        "--replay", type=_NOT_NEGATIVE, help="Old rows' share, with --continue.  [default: 0.1]"
    ),
    click.option(
        "--ewc", type=_NOT_NEGATIVE, help="Hold old weights, with --continue.  [default: 0]"
    ),
    click.option(
        "--keep", type=click.IntRange(0), help="Rows for a later --continue.  [default: 1000]"
    ),
    click.option("--beta", type=_POSITIVE, help="Of preferences.  [default: 0.1]"),
    click.option("--checkpoint-minutes", type=_NOT_NEGATIVE, help="[default: 3]"),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="[default: 0]"),
    click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), help="[default: auto]"),
)


def settings_options(without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Add an option for each setting of a training but these."""

    def add(command: Any) -> Any:
        for option in reversed(_SETTINGS):
            before = list(getattr(command, "__click_params__", ()))
            command = option(command)
            if command.__click_params__[-1].name in without:
                command.__click_params__ = before
        return command

    return add


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
    kind: str | None,
    source: Source,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train an adapter for TASK and put it into the store, where it can be promoted.

    The prompts are those that a worker would make. A run that is killed, or stopped with Ctrl-C,
    goes on with --resume as if nothing had been.
    """
    if resume is not None:
        if task is not None or data or parent is not None or feedback:
            raise click.UsageError("--resume takes a run's task, data and settings from the run.")
        run = run_table(session).find(resume)
        record = train_run(session, run)
    elif task is None or not (data or feedback):
        raise click.UsageError("Say what to train, and on what: `gptflow train TASK --data FILE`.")
    else:
        if parent is None and (settings["replay"] is not None or settings["ewc"] is not None):
            raise click.UsageError("--replay and --ewc go with --continue ADAPTER.")
        files = data_files(data, dev_files, test_files, kind, source, data_name or "", licence)
        run = _begin(
            session, task, files, settings, adapter, gates_of(gates), model, track, parent, feedback
        )
        note(f"run {run.folder.name}")
        record = train_run(session, run)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        tell(record)


def _begin(
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
) -> Run:
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.feedback import FeedbackTable
    from gptflow.training.parent import Parent
    from gptflow.training.settings import BY_KIND, TrainingSettings
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
    chosen = {name: value for name, value in given.items() if value is not None}
    return begin(
        table,
        known,
        base,
        files,
        TrainingSettings.of(**{**BY_KIND.get(files[0].kind, {}), **chosen}),
        adapter=adapter,
        gates=gates,
        track=track or settings.track,
        parent=found,
    )


def train_run(session: Session, run: Run) -> RunRecord:
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.training import train as go_on

    settings = session.settings()
    before = run.record
    known = ready(session, before.task) if before.task else None
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    with watching(f"gptflow train --resume {run.folder.name}") as watch:
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


@contextlib.contextmanager
def watching(resume: str) -> Iterator[Any]:
    """Show how it goes; the first Ctrl-C or TERM stops the run after the step that it is in.

    Args:
        resume: the command that goes on.
    """
    from gptflow.training.training import Watch

    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])  # a second one ends the process at once

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    with contextlib.ExitStack() as stack:
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

        def check() -> None:
            if stopped:
                note(f"Stopped. `{resume}` goes on.")
                raise KeyboardInterrupt

        try:
            yield Watch(update=update, note=note, lower=lower, stage=stage)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def data_files(
    data: Sequence[Path],
    dev: Sequence[Path],
    test: Sequence[Path],
    kind: Any,
    source: Source,
    name: str,
    licence: str,
) -> list[DataFile]:
    from gptflow.training.data.reading import guess_kind
    from gptflow.training.parts import data_file

    files = [
        (part, path, _own_labels(path, source))
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


def _own_labels(path: Path, source: Source) -> Source:
    """A file of a data set that knows some of the heads only: the others are masked there."""
    import dataclasses

    from gptflow.training.data.reading import fields_of

    if len(source.labels) < 2 or not path.is_file():
        return source
    fields = fields_of(path, source)
    own = {head: field for head, field in source.labels.items() if field in fields}
    return dataclasses.replace(source, labels=own)


def gates_of(given: Sequence[str]) -> dict[str, float]:
    gates = {}
    for each in given:
        figure, _, value = each.partition("=")
        try:
            gates[figure] = float(value)
        except ValueError:
            raise click.UsageError(f"--gate is FIGURE=VALUE, not {each!r}.") from None
    return gates


def run_table(session: Session) -> Any:
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
