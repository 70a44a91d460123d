"""The worker and scheduler processes of GPTFlow."""

from __future__ import annotations

import sys
from typing import Literal, NoReturn

from gptflow import config
from gptflow.errors import GPTFlowError


def start(role: Literal["cpu", "gpu", "beat"]) -> NoReturn:
    """Run one of the processes on this process's settings, and exit with its code."""
    try:
        sys.exit(_run(role))
    except GPTFlowError as error:
        print(f"gptflow {role}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(role: Literal["cpu", "gpu", "beat"]) -> int:
    settings = config.load()
    if role == "beat":
        from gptflow.queue.schedule import run_beat

        return run_beat(settings)
    from gptflow.queue.worker import run_worker

    return run_worker(settings, profile=role)
