"""`python -m benchmarks.peers run`: the rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks import machine
from benchmarks.peers import report
from benchmarks.peers.environments import find_model, folder_option, model_option
from benchmarks.peers.process import ROOT, PeerFailed, PeerProcess
from benchmarks.peers.report import Round
from benchmarks.peers.roster import FULL, PEERS, Entrant
from gptflow.engine.bench import Item, Kind, workload

_WARM = 8
"""Requests to run untimed before each measurement: caches are cold after being stopped."""


class _EntrantType(click.ParamType[Entrant]):
    name = "engine"

    def convert(self, value: Any, param: Any, ctx: Any) -> Entrant:
        return value if isinstance(value, Entrant) else Entrant.parse(value)


@click.command()
@click.option(
    "-e",
    "--engine",
    "entrants",
    type=_EntrantType(),
    multiple=True,
    metavar="NAME[:PRECISION]",
    help=f"Again for each; the first is what the ratios refer to.  [default: {', '.join(PEERS)}]",
)
@click.option(
    "-w",
    "--workload",
    "kinds",
    type=click.Choice(get_args(Kind)),
    multiple=True,
    default=("label", "mixed", "single"),
    show_default=True,
)
@click.option("-r", "--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("-n", "most", type=click.IntRange(1), help="Requests of a workload at most.")
@click.option("--full", is_flag=True, help="All requests for the slow engines too.")
@click.option("--threads", type=click.IntRange(1), help="Of every engine.  [default: the cores]")
@click.option("--limit", default=1800.0, show_default=True, help="Seconds for one measurement.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("peers-report"),
    show_default=True,
    help="Folder of peers.json, peers.md, peers.png and the engines' logs.",
)
@folder_option
@model_option
def run(
    entrants: Sequence[Entrant],
    kinds: Sequence[Kind],
    rounds: int,
    most: int | None,
    full: bool,
    threads: int | None,
    limit: float,
    out: Path,
    folder: Path,
    model: str,
) -> None:
    """Measure the engines in turn. About 25 minutes for all of them."""
    # So that the engines' processes are ended then too: they may be stopped, and deaf to it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    entrants = entrants or [Entrant.parse(name) for name in PEERS]
    out.mkdir(parents=True, exist_ok=True)
    path = find_model(model)
    click.echo("measuring the machine", err=True)
    facts: dict[str, Any] = {
        "machine": machine.describe(),
        "commit": _commit(),
        "model": model,
        "reference": entrants[0].title,
        "rounds": rounds,
        "engines": {},
        "failed": {},
    }
    processes: dict[Entrant, PeerProcess] = {}
    measured: list[Round] = []
    with contextlib.ExitStack() as stack:
        for entrant in entrants:
            click.echo(f"loading {entrant.title}", err=True)
            try:
                process = PeerProcess(
                    entrant,
                    folder=folder,
                    model=path,
                    threads=threads or machine.cores(),
                    log=out / f"{entrant.title.replace(':', '-')}.log",
                    limit=limit,
                )
            except PeerFailed as error:
                _drop(facts, entrant, error)
                continue
            stack.callback(process.close)
            processes[entrant] = process
            facts["engines"][entrant.title] = process.ready
        for kind in kinds:
            for number in range(rounds):
                for entrant in _in_turn(list(processes), number):
                    count = FULL[kind] if full else entrant.peer.requests(kind)
                    count = min(count, most or count)
                    try:
                        measured.append(_measure(processes[entrant], entrant, kind, number, count))
                    except PeerFailed as error:
                        _drop(facts, entrant, error)
                        del processes[entrant]
                # Whatever happens next, what was measured is kept.
                _write(out, measured, facts)
    click.echo((out / "peers.md").read_text(encoding="utf-8"))
    if facts["failed"]:
        raise click.ClickException(f"without {', '.join(facts['failed'])}")


def _in_turn(entrants: Sequence[Entrant], number: int) -> list[Entrant]:
    """Each round begins with another one, so that nobody always runs after the same."""
    start = number % max(len(entrants), 1)
    return [*entrants[start:], *entrants[:start]]


def _measure(process: PeerProcess, entrant: Entrant, kind: Kind, number: int, count: int) -> Round:
    # New ids each round: an engine that keeps whole prompts would only look them up. The same
    # for every engine, up to its number of requests.
    items = workload(kind, FULL[kind], seed=1000 + number)[:count]
    warm = workload("mixed", _WARM, seed=2000 + number)
    found = process.measure(items, [Item(ids=item["ids"], new=4) for item in warm])
    amount = len(items) if kind == "label" else sum(item["new"] for item in items)
    rate = amount / found.seconds
    click.echo(f"{kind} {number + 1}: {entrant.title} {rate:.1f} {report.UNITS[kind]}", err=True)
    return Round(entrant.title, kind, number, len(items), found.seconds, rate, found.first)


def _drop(facts: dict[str, Any], entrant: Entrant, error: PeerFailed) -> None:
    click.secho(str(error), fg="red", err=True)
    facts["failed"][entrant.title] = str(error)


def _write(out: Path, measured: Sequence[Round], facts: dict[str, Any]) -> None:
    rows = report.summarise(measured, facts["reference"])
    result = {
        **facts,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [dataclasses.asdict(row) for row in rows],
        "measurements": [
            {k: v for k, v in dataclasses.asdict(r).items() if k != "first"} for r in measured
        ],
    }
    (out / "peers.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "peers.md").write_text(report.markdown(rows, facts), encoding="utf-8")
    try:
        report.picture(rows, facts["reference"], out / "peers.png")
    except ImportError:
        click.echo("no picture: pip install 'gptflow[bench]'", err=True)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip()
