"""`gptflow runs`: the trainings on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, print_json, print_table

if TYPE_CHECKING:
    from gptflow.training.runs import Run, RunTable


@click.group(short_help="List trainings, show, compare and draw them.")
def runs() -> None:
    """List trainings, show how one goes, compare and draw several. `last` is the newest."""


@runs.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List the trainings, the oldest first."""
    found = [_row(run) for run in _table(session).list()]
    if as_json:
        print_json(found)
        return
    columns = ("run", "task", "state", "figure", "value", "floor", "steps", "adapter")
    print_table(
        columns,
        ([row[name] for name in columns] for row in found),
        empty="There are no runs yet. `gptflow train TASK --data FILE` makes one.",
    )


@runs.command()
@click.argument("run")
@json_option
@click.pass_obj
def show(session: Session, run: str, as_json: bool) -> None:
    """Show one training: its settings, its data, how it went or goes."""
    found = _table(session).find(run)
    from gptflow.training.stages import Stages

    record, log = found.record, found.log()
    stages = Stages.load(found.folder)
    history = [
        {"step": each["step"], "loss": each["loss"], **each["figures"]}
        for each in log
        if each["figures"]
    ]
    if as_json:
        print_json(
            record.model_dump(mode="json")
            | {"state": found.state, "last": log[-1] if log else None, "history": history}
            | {"stages": None if stages is None else stages.as_dict()}
        )
        return
    rows: list[tuple[str, Any]] = [
        ("run", record.id),
        ("task", record.task),
        ("adapter", record.version or record.adapter),
        ("state", found.state),
        ("model", record.model),
    ]
    rows += [("goes on from", record.parent)] if record.parent else []
    rows += [("error", record.error)] if record.error else []
    rows += [(f"data: {file.split}", f"{file.path}, {file.licence}") for file in record.data]
    if log:
        last = log[-1]
        rows.append(("step", f"{last['step']} of {last['steps']}, epoch {last['epoch']:.2f}"))
        rows.append(("loss", f"{last['loss']:.4f}"))
        rows.append(("tokens/s", f"{last['tokens_per_s']:.0f}"))
    rows += [
        (f"after step {each['step']}", ", ".join(f"{n} {v:.4f}" for n, v in list(each.items())[1:]))
        for each in history
    ]
    rows += [
        (name, f"{m.value:.4f}" + ("" if m.floor is None else f" (floor {m.floor:.4f})"))
        for name, m in record.metrics.items()
    ]
    several = stages is not None and len(stages.stages) > 1
    if stages is not None and several:
        rows += [
            (name, f"{value:.4f}") for name, value in stages.summary().items() if value is not None
        ]
    print_table(("field", "value"), rows)
    if stages is not None and several:
        numbers = [str(number) for number in range(1, len(stages.stages) + 1)]
        print_table(
            ("after stage", "measured on", *numbers),
            stages.table(),
            title=f"{stages.figure} at each stage's task",
        )


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@json_option
@click.pass_obj
def compare(session: Session, names: tuple[str, ...], as_json: bool) -> None:
    """Compare trainings: the settings in which they differ, and their figures."""
    table = _table(session)
    found = [table.find(name) for name in names]
    columns = {run.record.id: _flat(run) for run in found}
    fields = list(dict.fromkeys(field for column in columns.values() for field in column))
    differing = [
        field
        for field in fields
        if len(columns) == 1 or len({repr(c.get(field)) for c in columns.values()}) > 1
    ]
    if as_json:
        print_json({name: {f: c.get(f) for f in differing} for name, c in columns.items()})
        return
    print_table(
        ("field", *columns),
        ([field, *(_short(c.get(field)) for c in columns.values())] for field in differing),
        empty="They do not differ.",
    )


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PNG to write.  [default: loss.png beside a run, comparison.png here for several]",
)
@json_option
@click.pass_obj
def plot(session: Session, names: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Draw losses and development figures of trainings, also while they go."""
    from gptflow.training import curves

    table = _table(session)
    found = list({run.folder: run for run in map(table.find, names)}.values())
    if out is None:
        out = found[0].folder / curves.FILE if len(found) == 1 else Path("comparison.png")
    out.write_bytes(curves.draw(found))
    if as_json:
        print_json({"runs": [run.folder.name for run in found], "file": str(out)})
    else:
        click.echo(str(out))


def _table(session: Session) -> RunTable:
    from gptflow.training.runs import RunTable

    return RunTable(session.settings().data_dir / "runs")


def _row(run: Run) -> dict[str, Any]:
    record = run.record
    metric = record.metrics.get(record.primary)
    return {
        "run": record.id,
        "task": record.task,
        "state": run.state,
        "figure": record.primary or None,
        "value": None if metric is None else round(metric.value, 4),
        "floor": None if metric is None or metric.floor is None else round(metric.floor, 4),
        "steps": record.steps or None,
        "adapter": record.version,
        "created": record.created.isoformat(),
    }


def _flat(run: Run) -> dict[str, Any]:
    """Of a run, what another may have otherwise."""
    record = run.record
    return {
        "task": record.task,
        "adapter": record.adapter,
        "model": record.model,
        "parent": record.parent,
        "data": ", ".join(f"{file.name} {file.sha256[:8]}" for file in record.data),
        **record.settings.model_dump(mode="json"),
        "state": run.state,
        "steps": record.steps,
        "tokens": record.tokens,
        "seconds": round(record.seconds, 1),
        **{name: metric.value for name, metric in record.metrics.items()},
    }


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
