"""`gptflow queue`: how the queue and its workers are doing, and who may do what there."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from gptflow.config import Settings
    from gptflow.queue.overview import Overview
    from gptflow.transport import WorkerRecord


@click.group(short_help="Show what waits, what runs and who works.")
def queue() -> None:
    """Show what waits, what runs and who works."""


@queue.command()
@json_option
@click.pass_obj
def show(session: Session, as_json: bool) -> None:
    """Show depths, the oldest jobs, the pace, dead jobs and the workers."""
    overview = look(session.settings())
    if as_json:
        print_json(overview.as_dict())
        return
    print_table(
        ("class", "waiting", "oldest"),
        (
            (name, f"{depth:,}", _span(overview.oldest[name]) if depth else "")
            for name, depth in overview.depth.items()
        ),
    )
    print_table(("", "now"), _rows(overview))
    print_table(
        ("worker", "model", "plugins", "in flight", "slots", "KV", "tokens/s", "up"),
        map(_worker, overview.workers),
        empty="No worker is running. `gptflow worker` starts one.",
    )
    if overview.dead:
        note("`gptflow dead list` shows the dead jobs.")


@queue.command()
@click.argument("role", type=click.Choice(["caller", "worker", "operator"]))
@click.pass_obj
def acl(session: Session, role: str) -> None:
    """Print what a ROLE may do on the server, for its ACL file or `ACL SETUSER`.

    \b
    echo "user caller on >$PASSWORD $(gptflow queue acl caller)" >> users.acl
    """
    from gptflow.queue.acl import rules

    click.echo(rules(role, session.settings().app))  # type: ignore[arg-type]


def look(settings: Settings) -> Overview:
    """Ask the settings' server.

    Raises:
        ConfigError: there is none, or it is `memory://`.
        BrokerUnavailable: it does not answer.
    """
    from gptflow.errors import ConfigError
    from gptflow.queue.overview import read_overview
    from gptflow.queue.transport import open_store

    if settings.broker_url == "memory://":
        raise ConfigError(
            "memory:// has no queue that others could see.",
            hint="Set GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
        )
    store = open_store(settings)
    try:
        return read_overview(store)
    finally:
        store.close()


def _rows(seen: Overview) -> list[tuple[str, str]]:
    return [
        ("running", f"{seen.running:,} jobs and messages"),
        ("delayed", f"{seen.delayed:,}"),
        ("to run alone", f"{seen.suspects:,}"),
        ("dead", f"{seen.dead:,}"),
        ("pace", f"{seen.pace:,.1f} items/s"),
        ("backlog", _span(seen.backlog) if seen.waiting else "none"),
        ("leases expired", f"{seen.totals.get('expired_leases', 0):,} so far"),
        ("results refused", f"{seen.totals.get('refused_results', 0):,} so far"),
    ]


def _worker(worker: WorkerRecord) -> tuple[str, ...]:
    stats = worker.stats
    limit = stats.get("kv_tokens_limit")
    return (
        worker.name,
        worker.model,
        ", ".join(worker.plugins),
        f"{worker.in_flight:,}",
        f"{stats['slots_used']}/{stats['slots']}" if "slots" in stats else "",
        f"{stats['kv_tokens_reserved'] / limit:.0%}" if limit else "",
        f"{stats['tokens_per_second']:,.0f}" if "tokens_per_second" in stats else "",
        _span(time.time() - worker.started),
    )


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
