"""`gptflow bench`: measure speed on this machine."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gptflow.cli.session import Session, json_option, model_option, note, print_table
from gptflow.errors import InvalidInput

if TYPE_CHECKING:
    from gptflow.engine.bench import Draw, Item

Kind = Literal["mixed", "label", "single"]
KINDS: dict[Kind, int] = {"mixed": 64, "label": 200, "single": 1}
"""The workloads, and how many requests each has."""


@click.group(short_help="Measure speed.")
def bench() -> None:
    """Measure speed on this machine."""


@bench.command()
@click.option(
    "-w",
    "--workload",
    "workloads",
    type=click.Choice(list(KINDS)),
    multiple=True,
    default=("mixed",),
    show_default=True,
    help="Again for each; they run one after the other on the same engine.",
)
@click.option(
    "--requests", type=click.Path(exists=True, path_type=Path), help="JSONL to run instead."
)
@click.option("-n", "count", type=click.IntRange(1), help="How many requests.")
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Passes to take the median of, with new random token ids each.",
)
@click.option(
    "--warm-up/--no-warm-up",
    default=True,
    show_default=True,
    help="Run one pass first that does not count.",
)
@click.option("--dtype", help="Of the weights.  [default: the settings']")
@json_option
@model_option
@click.pass_obj
def engine(
    session: Session,
    workloads: Sequence[Kind],
    requests: Path | None,
    count: int | None,
    repeat: int,
    warm_up: bool,
    dtype: str | None,
    as_json: bool,
    model: str | None,
) -> None:
    """Run requests {"ids": [...], "new": n} through the engine: greedy, to their full length.

    All requests of a workload are submitted at once. `mixed` is 64 requests that share 96
    tokens and draw 32 to 96; `label` is 200 that share 128 and draw one; `single` is one that
    draws 128.

    A pass of each workload runs first and is not counted, so that memory touched for the first
    time is not measured. After the counted passes another one listens to every token, for the
    time to the first token (TTFT) and the time per output token (TPOT).

    With --json there is one line for each workload.
    """
    from gptflow.engine import bench as measure
    from gptflow.queue.engine_factory import load_engine

    work = list(_work(workloads, requests, count))
    loaded = load_engine(session.settings(model=model, dtype=dtype))
    rows = []
    try:
        note(f"{loaded.model.id} ({loaded.model.dtype}) on {loaded.model.device}")
        for kind, draw in work:
            row = measure.measure(loaded, draw, kind, repeat=repeat, warm_up=warm_up)
            rows.append(row)
            if as_json:
                click.echo(json.dumps(row))
    finally:
        loaded.close()
    if not as_json:
        _print(rows)


@bench.command()
@click.option("--jobs", type=click.IntRange(100), default=2000, show_default=True)
@click.option("--items", type=click.IntRange(640), default=40_000, show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="To put to the model, bare and through the queue; 0 for none.",
)
@json_option
@model_option
@click.pass_obj
def queue(
    session: Session, jobs: int, items: int, requests: int, as_json: bool, model: str | None
) -> None:
    """Measure the queue: a real server, a real worker, first without a model and then with it.

    Without a model: single jobs and rows of a batch that end in a second, how long submitting
    one takes, and the worker's round trips to the server for each job. With the model: the
    same prompts through the bare engine and through the queue, and what share of the engine's
    speed is left.

    The server is that of the settings, in an application of its own that is removed at the
    end; where none is set, an embedded one.
    """
    from gptflow.queue import bench as measure

    settings = session.settings(model=model)
    if requests and not measure.is_at_hand(settings):
        note(f"{settings.model} is not here; without it. `gptflow models pull {settings.model}`")
        requests = 0
    row = measure.measure(settings, jobs=jobs, items=items, requests=requests)
    if as_json:
        click.echo(json.dumps(row))
    else:
        print_table(("measured", "value"), row.items())


def _work(
    workloads: Sequence[Kind], requests: Path | None, count: int | None
) -> Iterator[tuple[str, Draw]]:
    """Name and requests of each workload."""
    from gptflow.engine import bench as measure

    if requests is not None:
        items = _read(requests)[:count]
        yield requests.stem, lambda _: items
        return
    for kind in workloads:
        yield kind, functools.partial(measure.workload, kind, count or KINDS[kind])


def _print(rows: Sequence[dict[str, Any]]) -> None:
    columns = {
        "workload": "kind",
        "requests": "n",
        "seconds": "seconds",
        "out tok/s": "out_tok_s",
        "in tok/s": "in_tok_s",
        "req/s": "req_s",
        "TTFT p50 ms": "ttft_ms_p50",
        "p99": "ttft_ms_p99",
        "TPOT p50 ms": "tpot_ms_p50",
        "p99 ": "tpot_ms_p99",
        "peak MB": "peak_rss_mb",
    }
    print_table(tuple(columns), [[row[name] for name in columns.values()] for row in rows])


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
