"""`gptflow worker` and `gptflow beat`: the long-running processes."""

from __future__ import annotations

from typing import Literal

import click

from gptflow.cli.session import Session, model_option


@click.command(short_help="Start a worker.")
@click.option(
    "--profile",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
@click.option("--slots", type=click.IntRange(1, 4096), help="Sequences decoding at once.")
@click.option("--concurrency", type=click.IntRange(1, 4096), help="Jobs in flight at once.")
@model_option
@click.pass_obj
def worker(
    session: Session,
    profile: Literal["auto", "cpu", "gpu"],
    slots: int | None,
    concurrency: int | None,
    model: str | None,
) -> int:
    """Start a worker: one resident model that serves every plugin."""
    from gptflow.queue.worker import run_worker

    device = {"auto": None, "cpu": "cpu", "gpu": "cuda"}[profile]
    settings = session.settings(model=model, device=device, slots=slots, concurrency=concurrency)
    return run_worker(settings, log_level=session.log_level)


@click.command(short_help="Start the scheduler.")
@click.pass_obj
def beat(session: Session) -> int:
    """Start the scheduler. Several may run: each schedule fires once."""
    from gptflow.queue.schedule import run_beat

    return run_beat(session.settings(), log_level=session.log_level)
