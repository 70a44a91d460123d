"""`gptflow tune`: a search for the settings that train best."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import SECONDS, Session, json_option, note, print_json, print_table
from gptflow.cli.sources import source_options
from gptflow.cli.train import train
from gptflow.cli.training_options import data_files, settings_options
from gptflow.cli.training_run import ready, watching

if TYPE_CHECKING:
    from gptflow.training.data.source import Source
    from gptflow.training.tuning.study import Study, Trial

_FILE = click.Path(path_type=Path)


@click.command(short_help="Search for the settings that train best.")
@click.argument("task", required=False)
@click.option("--data", "data", multiple=True, type=_FILE, help="Rows to train on.")
@click.option("--dev", "dev_files", multiple=True, type=_FILE, help="Rows to choose by.")
@click.option("--test", "test_files", multiple=True, type=_FILE, hidden=True)
@click.option("--trials", type=click.IntRange(1), help="In all.  [default: 20]")
@click.option("--timeout", type=SECONDS, help="Seconds after which to stop; --resume goes on.")
@click.option(
    "--space",
    "dimensions",
    multiple=True,
    metavar="NAME=SPACE",
    help="A range, `learning_rate=1e-4:1e-3:log`, or values, `rank=8,16`.",
)
@click.option("--prune/--no-prune", default=True, help="Give up what is worse than the median.")
@click.option("--study", metavar="NAME", help="To begin or go on with.  [default: a new one]")
@click.option("--resume", metavar="STUDY", help="Go on with a study, or `last`.")
@click.option("--adapter", metavar="ALIAS", help="Where the task's head names several.")
@click.option("--model", help="To train.  [default: the settings']")
@click.option(
    "--track",
    multiple=True,
    type=click.Choice(("mlflow", "wandb")),
    help="Show trials there too.  [default: the settings']",
)
@settings_options()
@source_options
@json_option
@click.pass_context
def tune(
    context: click.Context,
    /,
    task: str | None,
    data: tuple[Path, ...],
    dev_files: tuple[Path, ...],
    test_files: tuple[Path, ...],
    trials: int | None,
    timeout: float | None,
    dimensions: tuple[str, ...],
    prune: bool,
    study: str | None,
    resume: str | None,
    adapter: str | None,
    model: str | None,
    track: tuple[str, ...],
    kind: str | None,
    source: Source,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search for the settings with which TASK trains best, by the development split alone.

    A setting that is given, such as --rank 16, is the same for all trials; --space says between
    what others are searched. The first trial has the defaults. Nothing is put into the adapter
    store: what is printed in the end is the `gptflow train` command that does.
    """
    session: Session = context.obj
    if test_files:
        raise click.UsageError(
            "Settings are never chosen by test rows: give --test to the `gptflow train` that "
            "this search ends with."
        )
    if resume is not None:
        if task is not None or data or dimensions or study is not None:
            raise click.UsageError("--resume takes a study's task, data and space from the study.")
        found = _table(session).find(resume)
        if trials is not None:
            found.write(found.record.model_copy(update={"trials": trials}))
    elif task is None or not data:
        raise click.UsageError("Say what to train, and on what: `gptflow tune TASK --data FILE`.")
    else:
        files = data_files(data, dev_files, (), kind, source, "", "unknown")
        found = _begin(
            session,
            task,
            files,
            settings,
            dimensions,
            name=study,
            trials=trials or 20,
            adapter=adapter,
            prune=prune,
            words=_words(context),
            model=model,
            track=track,
        )
    note(f"study {found.folder.name}")
    _tell(found, _tune(session, found, timeout), as_json)


def _begin(
    session: Session,
    task: str,
    files: Sequence[Any],
    given: Mapping[str, Any],
    dimensions: Sequence[str],
    *,
    model: str | None,
    track: Sequence[str],
    **fields: Any,
) -> Study:
    from gptflow.models import ModelStore
    from gptflow.training.settings import TrainingSettings
    from gptflow.training.tuning.space import default_space, written
    from gptflow.training.tuning.tuner import begin

    settings = session.settings(model=model)
    known = session.registry(settings, warn=True).task(task)
    store = ModelStore(settings.cache_dir, offline=settings.offline)
    common = TrainingSettings.of(**given)
    space = default_space(common, files[0].kind) | (own := written(dimensions))
    for name in {name for name, value in given.items() if value is not None} & space.keys():
        if name in own:
            raise click.UsageError(f"{name} is given, and searched by --space too.")
        del space[name]
    return begin(
        _table(session),
        known,
        store.find(settings.model),
        files,
        common,
        space=space,
        track=track or settings.track,
        **fields,
    )


def _tune(session: Session, study: Study, timeout_s: float | None) -> list[Trial]:
    from gptflow.models import ModelStore
    from gptflow.training.tuning.tuner import tune

    settings = session.settings()
    record = study.record
    known = ready(session, record.task)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)

    @contextlib.contextmanager
    def watch(number: int, searched: Mapping[str, Any]) -> Iterator[Any]:
        note(f"trial {number} of {record.trials}: {_listed(searched)}")
        with watching(f"gptflow tune --resume {study.folder.name}") as watch:
            yield watch

    return tune(
        study,
        known,
        ModelStore(settings.cache_dir, offline=settings.offline).find(record.model_folder),
        context=settings.slot_tokens,
        watching=watch,
        timeout_s=timeout_s,
        note=note,
    )


def _words(context: click.Context) -> list[str]:
    """What was typed here that `gptflow train` takes as well."""
    from click.core import ParameterSource

    taken = {param.name for param in train.params} - {"resume", "as_json"}
    words: list[str] = []
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        # What `source_options` has taken in is no parameter's value any more.
        if not given or name not in taken:
            continue
        value = context.params[name]
        if isinstance(param, click.Argument):
            words.append(str(value))
        else:
            words += _option(param, value)
    return words


def _option(param: click.Parameter, value: Any) -> list[str]:
    """An option as it is typed to have a value."""
    if isinstance(param, click.Option) and param.is_flag:
        if value:
            return [param.opts[0]]
        return [param.secondary_opts[0]] if param.secondary_opts else []
    values = value if param.multiple else (value,)
    return [word for each in values for word in (param.opts[0], str(each).removesuffix(".0"))]


def _command(study: Study, best: Trial) -> list[str]:
    """The command that trains with the best settings."""
    options = {param.name: param for param in train.params}
    found = [
        word for name, value in best.settings.items() for word in _option(options[name], value)
    ]
    return ["gptflow", "train", *study.record.words, *found]


def _tell(study: Study, trials: Sequence[Trial], as_json: bool) -> None:
    import dataclasses

    best = study.best()
    command = [] if best is None else _command(study, best)
    figure = next((run.record.primary for run in study.runs.list() if run.record.primary), None)
    if as_json:
        print_json(
            {
                "study": study.folder.name,
                "task": study.record.task,
                "figure": figure,
                "space": study.record.space,
                "best": None if best is None else dataclasses.asdict(best),
                "command": command,
                "trials": [dataclasses.asdict(trial) for trial in trials],
            }
        )
        return
    names = list(study.record.space)
    print_table(
        ("trial", "state", figure or "value", *names, "seconds", "error"),
        (
            [
                f"{trial.number}{' *' if best is not None and trial.number == best.number else ''}",
                trial.state,
                "" if trial.value is None else f"{trial.value:.4f}",
                *(_short(trial.settings.get(name)) for name in names),
                f"{trial.seconds:.0f}",
                trial.error or "",
            ]
            for trial in trials
        ),
    )
    if len(trials) < study.record.trials or any(trial.state == "running" for trial in trials):
        note(f"The study is not done. `gptflow tune --resume {study.folder.name}` goes on.")
    if command:
        click.echo(f"To train with the best settings, those of trial {best.number if best else 0}:")
        click.echo(f"  {shlex.join(command)}")


def _listed(searched: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in searched.items())


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(session: Session) -> Any:
    from gptflow.training.tuning.study import StudyTable

    return StudyTable(session.settings().data_dir / "studies")
