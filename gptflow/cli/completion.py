"""`gptflow completion`: the shell's side of pressing Tab."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print SHELL's completion script; `eval` it in the shell's start-up file."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"This version of click does not know {shell}.")
    root = ctx.find_root()
    click.echo(found(root.command, {}, "gptflow", "_GPTFLOW_COMPLETE").source())
