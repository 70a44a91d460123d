"""`gptflow models`: the model store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table
from gptflow.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from gptflow.models import Model, ModelStore


@click.group(short_help="Get models and list them.")
def models() -> None:
    """Get models, list them, and show where they are."""


@models.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List the models in the store."""
    found = [_describe(model) for model in _store(session).list()]
    if as_json:
        print_json(found)
    else:
        columns = ("name", "source", "architecture", "context", "size", "licence")
        print_table(
            columns,
            ([row.get(name) for name in columns] for row in found),
            empty=f"The store has no models. `gptflow models pull {DEFAULT_MODEL}` gets one.",
        )


@models.command()
@click.argument("name")
@click.option(
    "--accept-licence",
    "accepted",
    multiple=True,
    metavar="ID",
    help="Agree to the terms of a model that asks for it, for instance gemma.",
)
@json_option
@click.pass_obj
def pull(session: Session, name: str, accepted: tuple[str, ...], as_json: bool) -> None:
    """Get a model: a name that GPTFlow knows, a hub id, or a folder."""
    model = _store(session, accepted).pull(name, progress=report_stages())
    if as_json:
        print_json(_describe(model))
    else:
        click.echo(f"{model.name} is at {model.path}")
    if model.terms is not None:
        note(f"Its licence: {model.licence}, {model.terms}")


@models.command()
@click.argument("name")
@click.option("--verify", is_flag=True, help="Compute every checksum again.")
@json_option
@click.pass_obj
def show(session: Session, name: str, verify: bool, as_json: bool) -> None:
    """Show one model of the store."""
    store = _store(session)
    model = store.verify(name) if verify else store.find(name)
    row = _describe(model)
    if as_json:
        print_json(row)
    else:
        print_table(("field", "value"), row.items())


def _store(session: Session, accepted: tuple[str, ...] = ()) -> ModelStore:
    from gptflow.models import ModelStore

    settings = session.settings()
    return ModelStore(
        settings.cache_dir,
        offline=settings.offline,
        accepted=(*settings.accept_licences, *accepted),
    )


def _describe(model: Model) -> dict[str, Any]:
    row = {name: str(value) if name == "path" else value for name, value in _fields(model).items()}
    return row | {"size": f"{model.size_bytes / 1e6:.0f} MB"}


def _fields(model: Model) -> dict[str, Any]:
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}


def report_stages() -> Callable[[str, int, int | None], None]:
    """Report each stage once, on standard error."""
    seen: set[str] = set()

    def report(stage: str, done: int, total: int | None) -> None:
        if stage not in seen:
            seen.add(stage)
            note(f"{stage} ...")

    return report
