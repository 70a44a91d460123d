"""`gptflow config`: what is set, and by whom."""

from __future__ import annotations

from typing import Any

import click

from gptflow.cli.session import Session, json_option, print_json, print_table
from gptflow.config import unknown_variables
from gptflow.errors import ConfigError
from gptflow.transport import connect


@click.group(short_help="Show the settings and where they come from.")
def config() -> None:
    """Show and check the settings."""


@config.command()
@json_option
@click.pass_obj
def show(session: Session, as_json: bool) -> None:
    """Show every setting, its value, and where that comes from. Secrets stay hidden."""
    settings = session.settings()
    sources = settings.sources
    values = settings.model_dump(mode="json")
    if settings.broker_url:
        from gptflow.queue.connection import redact

        values["redis_url"] = redact(settings.broker_url)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "value": values[name],
            "source": sources[name],
            "meaning": field.description,
        }
        for name, field in type(settings).model_fields.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(tuple(rows[0]), (list(row.values()) for row in rows))


@config.command()
@click.pass_obj
def check(session: Session) -> int:
    """Check the settings; exit code 10 where one is wrong, or a GPTFLOW_* variable is none."""
    settings = session.settings()
    if settings.broker_url is not None:
        connect(settings).close()  # which reads the URL, and sends nothing yet
    if unknown_variables():  # which ones, the warnings have said
        return ConfigError.exit_code
    click.echo("The settings are sound.")
    return 0
