"""`gptflow plugins`: what is installed, what it takes, and how to write one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from gptflow.cli.schema import outline
from gptflow.cli.session import Session, json_option, print_json, print_table
from gptflow.errors import PluginError, PluginNotFound
from gptflow.suggestion import did_you_mean


@click.group(short_help="List, show, write and check plugins.")
def plugins() -> None:
    """List, show, write and check plugins."""


@plugins.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List the installed plugins, their tasks, and why one failed to load."""
    registry = session.registry(session.settings())
    rows: list[dict[str, Any]] = [
        {
            "name": info.name,
            "version": info.version,
            "tasks": list(info.tasks),
            "module": info.module,
            "error": str(info.error) if info.error else None,
        }
        for info in registry.plugins.values()
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("plugin", "version", "tasks", "problem"),
        ((r["name"], r["version"], ", ".join(r["tasks"]), r["error"]) for r in rows),
        empty="No plugins are installed. `gptflow plugins new NAME` writes one.",
    )


@plugins.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(session: Session, name: str, as_json: bool) -> None:
    """Show a plugin, or a task: its input and output schemas, its head, an example call."""
    registry = session.registry(session.settings(), warn=True)
    if name in registry.plugins:
        info = registry.plugins[name]
        if info.error:
            raise info.error
        described = [_describe(registry.task(task)) for task in info.tasks]
    elif "." in name:
        described = [_describe(registry.task(name))]
    else:
        raise PluginNotFound(
            f"No plugin {name!r} is installed.",
            hint=did_you_mean(name, (*registry.plugins, *registry.tasks))
            or "`gptflow plugins list` shows plugins and tasks.",
        )
    if as_json:
        print_json(described)
        return
    for task in described:
        brief = {name: outline(task[name]) for name in ("input", "output")}
        print_table(("field", "value"), (task | brief).items())


@plugins.command()
@click.argument("name")
@click.option("--head", default="choose", show_default=True, help="How its task answers.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to write the package into.  [default: here]",
)
def new(name: str, head: str, into: Path) -> None:
    """Write a plugin package whose own tests pass at once."""
    from gptflow.scaffold import new_plugin

    try:
        created = new_plugin(name, head=head, into=into)
    except PluginError as error:  # no plugin is broken: what was typed will not do
        raise click.UsageError(str(error)) from None
    for path in created.files:
        click.echo(f"  wrote {path}")
    click.echo("\nNext:")
    for command in created.next_commands:
        click.echo(f"  {command}")


@plugins.command()
@click.argument("name", required=False)
@json_option
@click.pass_obj
def check(session: Session, name: str | None, as_json: bool) -> int:
    """Check a plugin, or all: it loads, its examples run, it keeps the contract."""
    from gptflow.checking import check_plugin

    registry = session.registry(session.settings())
    names = [name] if name else list(registry.plugins)
    findings = [finding for each in names for finding in check_plugin(registry, each)]
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    elif findings:
        columns = ("plugin", "severity", "message", "location")
        print_table(columns, ([getattr(f, c) for c in columns] for f in findings))
    else:
        click.echo(f"{', '.join(names)}: nothing to complain about.")
    return PluginError.exit_code if any(f.severity == "error" for f in findings) else 0


def _describe(task: Any) -> dict[str, Any]:
    from gptflow.testing import examples

    rows = examples(task)
    sample = rows[0]["input"] if rows else "..."
    return {
        "task": task.name,
        "summary": task.summary,
        "head": repr(task.head) if task.head else "chosen at run time",
        "input": task.input_type.model_json_schema(),
        "output": task.output_type.model_json_schema(),
        "location": task.location,
        "try": f"gptflow run {task.name} {shlex.quote(json.dumps(sample, ensure_ascii=False))}",
    }
