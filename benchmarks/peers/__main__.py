"""`python -m benchmarks.peers setup|run`."""

from __future__ import annotations

import click

from benchmarks.peers.environments import setup
from benchmarks.peers.run import run


@click.group()
def peers() -> None:
    """Compare the engine with what a user might pick instead."""


peers.add_command(setup)
peers.add_command(run)

if __name__ == "__main__":
    peers(prog_name="python -m benchmarks.peers")
