"""`gptflow eval`: what a task answers to the rows of a file, beside simple models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gptflow.cli.session import Session, json_option, model_option, note, print_json, print_table
from gptflow.cli.sources import source_options
from gptflow.cli.training_options import gates_of, own_labels

if TYPE_CHECKING:
    from gptflow.adapter import Manifest
    from gptflow.config import Settings
    from gptflow.plugins import AnyTask, Registry
    from gptflow.request import Engine
    from gptflow.training.data.source import Source
    from gptflow.training.evaluating import Asked
    from gptflow.training.evaluation.bootstrap import Comparison
    from gptflow.training.evaluation.summary import Report

SUMMARY = "evaluation.json"

_FILE = click.Path(path_type=Path)


class _Adapter(NamedTuple):
    """An adapter to measure: how it is called, its folder and what that says about itself."""

    name: str
    folder: Path
    manifest: Manifest


@click.command("eval", short_help="Measure a task on rows, beside simple models.")
@click.argument("task")
@click.option("--data", multiple=True, required=True, type=_FILE, help="Rows to measure with.")
@click.option(
    "--adapter", metavar="ALIAS[@VERSION]", help="Of the store, or shipped.  [default: as served]"
)
@click.option("--base", is_flag=True, help="Measure the model without an adapter.")
@click.option(
    "--compare", metavar="ALIAS[@VERSION]", help="Ask this one the same, and tell who is better."
)
@click.option(
    "--train",
    "train_files",
    multiple=True,
    type=_FILE,
    help="Rows to fit the simple models on.  [default: those that the adapter was trained on]",
)
@click.option(
    "--dev",
    "dev_files",
    multiple=True,
    type=_FILE,
    help="Rows to fit the temperature on.  [default: the adapter's own temperature]",
)
@click.option("--out-of-scope", metavar="LABEL", help="That stands for none of the others.")
@click.option("--gate", "gates", multiple=True, metavar="FIGURE=VALUE", help="To be reached.")
@click.option("--out", type=_FILE, help="Folder for the reports and pictures.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of the intervals.")
@model_option
@source_options
@json_option
@click.pass_obj
def evaluate(
    session: Session,
    /,
    task: str,
    data: tuple[Path, ...],
    adapter: str | None,
    base: bool,
    compare: str | None,
    train_files: tuple[Path, ...],
    dev_files: tuple[Path, ...],
    out_of_scope: str | None,
    gates: tuple[str, ...],
    out: Path | None,
    seed: int,
    model: str | None,
    kind: str | None,
    source: Source,
    as_json: bool,
) -> None:
    """Measure what TASK answers to the rows of a file, each figure beside its floor.

    The task runs in this process, on the engine that workers have. Floors are simple models that
    are fitted meanwhile; where one is as good as the adapter, that is said. Exit code 13 where a
    --gate is missed.
    """
    if base and adapter is not None:
        raise click.UsageError("--base measures the model without an adapter.")
    from gptflow.errors import GateMissed, InvalidInput
    from gptflow.training.evaluating import ask
    from gptflow.training.evaluating import report as make_reports
    from gptflow.training.recording import choose_adapter

    wanted = gates_of(gates)
    settings = session.settings(model=model)
    registry = session.registry(settings, warn=True)
    known = registry.task(task)
    alias = choose_adapter(known, _alias(adapter))
    rows = _read(data, kind, source)
    dev_rows = _read(dev_files, kind, source) if dev_files else []
    first = None if base else _find(settings, registry, alias, adapter)
    second = None if compare is None else _find(settings, registry, alias, compare)
    train, origin = _training_rows(session, train_files, kind, source, first)
    with _engine(settings, registry, known) as engine:
        _serve(engine, alias, first)
        asked = ask(known, engine, rows, alias=alias, out_of_scope=out_of_scope)
        dev = ask(known, engine, dev_rows, alias=alias) if dev_rows else None
        other = None
        if second is not None:
            _serve(engine, alias, second)
            other = ask(known, engine, rows, alias=alias, out_of_scope=out_of_scope)
        served = engine.model
    reports = make_reports(asked, train=train, dev=dev, seed=seed)
    compared = _compare(asked, other, seed)
    missed = _missed(reports, wanted)
    summary = {
        "task": task,
        "adapter": None if first is None else first.name,
        "model": {"id": served.id, "sha256": served.sha256},
        "data": [str(path) for path in data],
        "rows": len(rows),
        "truncated": asked.truncated,
        "floors_from": origin,
        "floor_wins": {name: each.floor_wins for name, each in reports.items()},
        "compared_with": None if second is None else second.name,
        "comparison": {name: _told(each) for name, each in compared.items()},
        "missed": missed,
    }
    if out is not None:
        try:
            for name, each in reports.items():
                each.write(out / f"report-{name}")
            _write(out / SUMMARY, summary)
        except OSError as error:
            raise InvalidInput(
                f"{out} cannot be written: {error.strerror}.", hint="Make room, or another --out."
            ) from None
    if as_json:
        print_json(summary | {"reports": {n: each.as_dict() for n, each in reports.items()}})
    else:
        _show(summary, reports, compared)
        if out is not None:
            note(f"{out} has the tables and pictures.")
    if missed:
        raise GateMissed(f"{task}: {'; '.join(missed)}.", hint="Train it better.")


@contextlib.contextmanager
def _engine(settings: Settings, registry: Registry, task: AnyTask) -> Iterator[Engine]:
    """The settings' model, with the task set up as in a worker."""
    from gptflow.executor import Executor
    from gptflow.queue.engine_factory import load_engine

    engine = load_engine(settings)
    try:
        Executor(engine, registry, settings=settings).setup([task.name])
        yield engine
    finally:
        engine.close()


def _find(
    settings: Settings, registry: Registry, alias: str, reference: str | None
) -> _Adapter | None:
    """The adapter of this name; without one, what a worker would serve, if anything."""
    from gptflow.adapter import Manifest
    from gptflow.adapter_info import MANIFEST
    from gptflow.errors import AdapterNotFound
    from gptflow.models.adapter_store import AdapterStore, check_folder
    from gptflow.queue.adapters import shipped

    store = AdapterStore(settings.adapters_dir)
    wanted = alias if reference is None else reference
    try:
        if reference is None and alias not in store.promoted():
            raise AdapterNotFound(alias)
        found = store.verify(store.find(wanted))
        return _Adapter(found.reference, found.folder, found.manifest)
    except AdapterNotFound:
        folder = shipped(registry.tasks.values()).get(wanted)
        if folder is not None:
            manifest = Manifest.parse((folder / MANIFEST).read_bytes(), name=wanted)
            check_folder(folder, manifest, name=wanted)
            return _Adapter(f"{wanted} (shipped)", folder, manifest)
        if reference is not None:
            raise
        note(f"No adapter {alias!r} is promoted: the base model answers, as it would in a worker.")
        return None


def _serve(engine: Engine, alias: str, adapter: _Adapter | None) -> None:
    from gptflow.errors import ConfigError
    from gptflow.request import ServesAdapters

    if adapter is None:
        return
    if not isinstance(engine, ServesAdapters):
        raise ConfigError(
            f"The model {engine.model.id!r} serves no adapters.",
            hint="Measure it as it is, with --base, or take an engine that does.",
        )
    engine.load_adapter(alias, adapter.folder)


def _read(paths: Sequence[Path], kind: Any, source: Source) -> list[Any]:
    from gptflow.training.data.reading import guess_kind, read

    rows: list[Any] = []
    for path in paths:
        own = own_labels(path, source)
        rows += read(path, kind or guess_kind(path, own), own).require()
    return rows


def _training_rows(
    session: Session,
    files: Sequence[Path],
    kind: str | None,
    source: Source,
    adapter: _Adapter | None,
) -> tuple[Sequence[Any], str]:
    """What the floors are fitted on, and where it comes from, in words."""
    from gptflow.errors import GPTFlowError
    from gptflow.training.runs import RunTable

    if files:
        return _read(files, kind, source), ", ".join(map(str, files))
    why = "name the rows with --train"
    if adapter is not None:
        from gptflow.training.parts import read_parts

        try:
            run = RunTable(session.settings().data_dir / "runs").find(adapter.manifest.version)
            return read_parts(run.record, note=note).train, f"the run {run.folder.name}"
        except GPTFlowError as error:
            why = f"{error.message} Name the rows with --train"
    note(f"The simple models have no rows to be fitted on: {why}.")
    return [], ""


def _compare(asked: Asked, other: Asked | None, seed: int) -> dict[str, Comparison]:
    from gptflow.training.evaluation.bootstrap import compare

    if other is None:
        return {}
    return {
        name: compare(answers, other.by_head[name], seed=seed)
        for name, answers in asked.by_head.items()
    }


def _told(comparison: Comparison) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(comparison) | {
        "better": comparison.better,
        "worse": comparison.worse,
    }


def _missed(reports: Mapping[str, Report], gates: Mapping[str, float]) -> list[str]:
    """Gates that are not reached, in words; one is on FIGURE of all heads, or HEAD.FIGURE."""
    missed: list[str] = []
    for figure, gate in gates.items():
        head, _, own = figure.rpartition(".")
        chosen = {n: r for n, r in reports.items() if head in ("", n)}
        measured = {n: r for n, r in chosen.items() if own in r.metrics or own == "ece"}
        if not measured:
            missed.append(f"{figure} was not measured")
        for name, report in measured.items():
            before = f"{name}: " if len(reports) > 1 else ""
            missed += [before + words for words in report.missed({own: gate})]
    return missed


def _show(
    summary: Mapping[str, Any],
    reports: Mapping[str, Report],
    compared: Mapping[str, Comparison],
) -> None:
    who = summary["adapter"] or summary["model"]["id"]
    for name, report in reports.items():
        floors = list(report.floors)
        rows = [
            (figure, found, *(report.floors[floor].get(figure, "") for floor in floors))
            for figure, found in report.metrics.items()
        ]
        title = f"{summary['task']}: {name}, {report.rows} rows"
        print_table(("figure", who, *floors), rows, title=title)
        if (found := report.calibration) is not None:
            click.echo(
                f"calibration error {found.ece:.4f} at temperature {found.temperature:.3f}, "
                f"{found.ece_before:.4f} without"
            )
        if (against := report.against_floor) is not None:
            winner = f"The floor wins: {against.floor}." if report.floor_wins else f"{who} wins."
            click.echo(
                f"{winner} {against.metric} minus that of {against.floor}: {against.difference}"
            )
        if (comparison := compared.get(name)) is not None:
            told = "better" if comparison.better else "worse" if comparison.worse else "no clear"
            difference = comparison.difference
            click.echo(
                f"{who} against {summary['compared_with']}: {comparison.metric} "
                f"{comparison.first:.3f} and {comparison.second:.3f}, {told}"
                f"{' difference' if told == 'no clear' else ''} "
                f"({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"
            )
    if summary["truncated"]:
        note(f"{summary['truncated']} of {summary['rows']} texts were shortened to fit the model.")


def _write(path: Path, summary: Mapping[str, Any]) -> None:
    from gptflow.training.evaluation.summary import write_whole

    write_whole(path, (json.dumps(summary, ensure_ascii=False, indent=2) + "\n").encode())


def _alias(reference: str | None) -> str | None:
    return None if reference is None else reference.partition("@")[0]
