"""`python -m shipped adapters --data DATA [ALIAS...]`: make the adapters that the plugins ship."""

from __future__ import annotations

import time
from pathlib import Path

import click

from shipped import customer_intents, entities, finance_tweets
from shipped.making import make

RECIPES = {
    recipe.alias: recipe
    for recipe in (
        finance_tweets.RECIPE,
        customer_intents.RECIPE,
        entities.POSTS,
        entities.FILINGS,
    )
}

_DATA = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the public data sets.",
)


@click.group()
def main() -> None:
    """Make the adapters that the plugins ship, and judge them."""


@main.command()
@click.argument("aliases", nargs=-1, metavar="[ALIAS]...")
@_DATA
@click.option("--build", type=click.Path(file_okay=False, path_type=Path), default="build/adapters")
def adapters(aliases: tuple[str, ...], data: Path, build: Path) -> None:
    """Train adapters, hours each on a CPU. One that was stopped goes on."""
    if unknown := set(aliases) - RECIPES.keys():
        raise click.UsageError(f"There is no {', '.join(unknown)}; there are {', '.join(RECIPES)}.")
    for alias in aliases or RECIPES:
        make(RECIPES[alias], data, build, _tell)


def _tell(message: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {message}")


if __name__ == "__main__":
    main()
