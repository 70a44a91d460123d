"""`gptflow bench`: measure speed on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gptflow.cli.session import Session, json_option, model_option, note, print_table
from gptflow.errors import InvalidInput

if TYPE_CHECKING:
    from gptflow.engine.bench import Item

Kind = Literal["mixed", "label", "single"]


@click.group(short_help="Measure speed.")
def bench() -> None:
    """Measure speed on this machine."""


@bench.command()
@click.option(
    "--workload",
    type=click.Choice(["mixed", "label", "single"]),
    default="mixed",
    show_default=True,
)
@click.option("--requests", type=click.Path(exists=True, path_type=Path), help="JSONL to replay.")
@click.option("-n", "count", type=click.IntRange(1), help="How many requests.")
@json_option
@model_option
@click.pass_obj
def engine(
    session: Session,
    workload: Kind,
    requests: Path | None,
    count: int | None,
    as_json: bool,
    model: str | None,
) -> None:
    """Run requests {"ids": [...], "new": n} through the engine: greedy, to their full length."""
    from gptflow.engine import bench as measure
    from gptflow.queue.engine_factory import load_engine

    kind, work = workload if requests is None else requests.stem, _work(workload, requests, count)
    loaded = load_engine(session.settings(model=model))
    try:
        note(f"{len(work)} requests on {loaded.model.id} ({loaded.model.dtype})")
        row = measure.run(loaded, work, kind)
    finally:
        loaded.close()
    if as_json:
        click.echo(json.dumps(row))
    else:
        print_table(tuple(row), [tuple(row.values())])


def _work(workload: Kind, requests: Path | None, count: int | None) -> Sequence[Item]:
    from gptflow.engine import bench as measure

    if requests is not None:
        return _read(requests)[:count]
    return measure.workload(workload, count or {"mixed": 64, "label": 200, "single": 1}[workload])


def _read(path: Path) -> Sequence[Item]:
    rows: list[Item] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({"ids": [int(i) for i in row["ids"]], "new": int(row["new"])})
        except (ValueError, KeyError, TypeError):
            raise InvalidInput(
                f'{path}, line {number}: expected {{"ids": [...], "new": n}}.'
            ) from None
    if not rows:
        raise InvalidInput(f"{path} has no requests.")
    return rows
