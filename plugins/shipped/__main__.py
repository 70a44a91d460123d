"""`python -m shipped adapters|gates --data DATA`: make the shipped adapters, and judge them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from shipped import answer_match, customer_intents, entities, finance_tweets, interest
from shipped.gates import Gate, judge
from shipped.making import make
from shipped.recipe import Recipe
from shipped.scope import judge_scope

RECIPES = {
    recipe.alias: recipe
    for recipe in (
        finance_tweets.RECIPE,
        customer_intents.RECIPE,
        entities.POSTS,
        entities.FILINGS,
        interest.RECIPE,
        answer_match.RECIPE,
    )
}

_DATA = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the public data sets.",
)
_BUILD = click.option(
    "--build", type=click.Path(file_okay=False, path_type=Path), default=Path("build/adapters")
)


@click.group()
def main() -> None:
    """Make the adapters that the plugins ship, and judge them."""


@main.command()
@click.argument("aliases", nargs=-1, metavar="[ALIAS]...")
@_DATA
@_BUILD
def adapters(aliases: tuple[str, ...], data: Path, build: Path) -> None:
    """Train adapters, hours each on a CPU. One that was stopped goes on."""
    for recipe in _chosen(aliases):
        make(recipe, data, build, _tell)


@main.command()
@click.argument("aliases", nargs=-1, metavar="[ALIAS]...")
@_DATA
@_BUILD
def gates(aliases: tuple[str, ...], data: Path, build: Path) -> None:
    """Measure the shipped adapters as they are served. Exits with 1 where a gate is missed."""
    found: list[Gate] = []
    for recipe in _chosen(aliases):
        if not recipe.home.is_dir():
            _tell(f"{recipe.alias}: not shipped")
            continue
        found += judge(recipe, data, build, _tell)
        if recipe is customer_intents.RECIPE:
            found += judge_scope(data, _tell)
    for gate in found:
        floor = "" if gate.floor is None else f"{gate.floor:.4f}"
        held = "held" if gate.held else "MISSED"
        click.echo(f"{gate.name:44} {floor:>8} {gate.asked:8.3f} {gate.seen:8.4f} {held}")
    sys.exit(not all(gate.held for gate in found))


def _chosen(aliases: tuple[str, ...]) -> list[Recipe]:
    if unknown := set(aliases) - RECIPES.keys():
        raise click.UsageError(f"There is no {', '.join(unknown)}; there are {', '.join(RECIPES)}.")
    return [RECIPES[alias] for alias in aliases or RECIPES]


def _tell(message: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {message}")


if __name__ == "__main__":
    main()
