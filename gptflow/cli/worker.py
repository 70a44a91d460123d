"""`gptflow worker` and `gptflow beat`: the long-running processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Literal

import click

from gptflow.cli.session import Session, model_option

bound_option = click.option(
    "--bound",
    is_flag=True,
    hidden=True,
    expose_value=False,
    callback=lambda _context, _option, bound: _stop_with_stdin() if bound else None,
    help="Stop when standard input closes: when whoever started this is gone.",
)


@click.command(short_help="Start a worker.")
@click.option(
    "--profile",
    type=click.Choice(["cpu", "gpu"]),
    help="Where the model runs.  [default: the settings' device]",
)
@click.option("--slots", type=click.IntRange(1, 4096), help="Sequences decoding at once.")
@click.option("--concurrency", type=click.IntRange(1, 4096), help="Messages in flight at once.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve /metrics, /livez and /readyz; 0 takes any free port.  [default: none]",
)
@click.option("--train", is_flag=True, help="Train what `gptflow train --queue` sends.")
@model_option
@bound_option
@click.pass_obj
def worker(
    session: Session,
    profile: Literal["cpu", "gpu"] | None,
    slots: int | None,
    concurrency: int | None,
    metrics_port: int | None,
    train: bool,
    model: str | None,
) -> int:
    """Start a worker: one resident model that serves every plugin.

    With --train it serves nothing. It takes trainings, one at a time, each in a process of its own.
    """
    from gptflow.queue.worker import run_worker

    settings = session.settings(
        model=model, slots=slots, concurrency=concurrency, metrics_port=metrics_port
    )
    if train:
        from gptflow.training.worker import for_training

        if profile is not None:
            raise click.UsageError("--profile goes with serving: each training says its device.")
        settings, parts = for_training(settings, options=session.options)
        return run_worker(settings, log_level=session.log_level, parts=parts)
    return run_worker(settings, profile=profile, log_level=session.log_level)


@click.command(short_help="Start the scheduler.")
@bound_option
@click.pass_obj
def beat(session: Session) -> int:
    """Start the scheduler. Several may run: each schedule fires once."""
    from gptflow.queue.schedule import run_beat

    return run_beat(session.settings(), log_level=session.log_level)


def _stop_with_stdin() -> None:
    def wait() -> None:
        # Not through sys.stdin: the interpreter could not shut it down under a waiting reader.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="gptflow-bound", daemon=True).start()
