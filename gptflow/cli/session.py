"""What the commands share: settings, a client, and the ways to print."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from gptflow.client import Client
    from gptflow.config import Settings
    from gptflow.plugins import Registry
    from gptflow.result import Result

WIDTH = 160
"""Columns of a table where the output is no terminal and `COLUMNS` does not say."""

PARTIAL = 9
"""Exit code of a batch in which some rows failed."""


class Number(click.ParamType[float]):
    """A finite number of `least` or more, or `above` it. `click.FloatRange` lets NaN through."""

    def __init__(self, name: str, *, least: float, above: bool = False) -> None:
        self.name = name
        self._least = least
        self._above = above

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        fits = number > self._least if self._above else number >= self._least
        if not fits or math.isinf(number):
            bound = f"above {self._least:g}" if self._above else f"of {self._least:g} or more"
            self.fail(f"{value!r} is not a number {bound}.", param, ctx)
        return number


SECONDS = Number("seconds", least=0, above=True)
"""A span of time that a clock can measure."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_option = click.option("--model", help="Model to serve.  [default: the settings']")
local_option = click.option(
    "--local", is_flag=True, help="Run in this process: no Redis, no worker."
)


class Session:
    """One call of the command line."""

    def __init__(self, config: Path | None, *, redis_url: str | None, verbose: bool) -> None:
        self._config = config
        self._redis_url = redis_url
        self._warned = False
        self.verbose = verbose

    @property
    def options(self) -> list[str]:
        """The options to give another `gptflow` so that it has the same settings."""
        config = ["--config", str(self._config.resolve())] if self._config else []
        return config + ["--verbose"] * self.verbose

    @property
    def log_level(self) -> str:
        """Of the long-running processes."""
        return "DEBUG" if self.verbose else "INFO"

    def settings(self, **flags: Any) -> Settings:
        """The settings, with this call's flags on top. Variables that set nothing are named."""
        from gptflow import config

        if not self._warned:
            self._warned = True
            for complaint in config.unknown_variables():
                note(f"warning [{complaint.code}]: {complaint}")
        return config.load(self._config, **{"redis_url": self._redis_url} | flags)

    @contextmanager
    def client(
        self,
        *,
        local: bool = False,
        needs_queue: bool = False,
        training: bool = False,
        **flags: Any,
    ) -> Iterator[Client]:
        """A client of the configured Redis, or of a worker inside this process.

        Where no Redis is configured, the work is done here, and a note says so; not with
        `needs_queue`, for what only makes sense with a queue. With `training`, the queue is that
        of trainings.
        """
        from gptflow.client import Client
        from gptflow.errors import ConfigError

        settings = self.settings(**flags)
        if needs_queue and settings.broker_url == "memory://":
            raise ConfigError(
                "memory:// keeps no jobs: they are gone with the process that ran them.",
                hint="Set GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
            )
        if flags.get("model") and not local and settings.broker_url is not None:
            raise click.UsageError(
                "--model goes with --local: a worker serves the model that it was started with."
            )
        if not local and settings.broker_url is None and not needs_queue:
            note("No Redis is configured and `gptflow up` is not running: working in this process.")
            local = True
        if local:
            self.registry(settings, warn=True)
            settings = self.settings(**flags | {"redis_url": "memory://"})
        with Client(settings=settings.training if training else settings) as client:
            yield client

    def registry(self, settings: Settings, *, warn: bool = False) -> Registry:
        """The loaded plugins. With `warn`, those that failed are named on standard error."""
        registry = _load_registry(settings.plugins)
        if settings.strict:
            registry.require_all()
        if warn:
            for info in registry.plugins.values():
                if info.error is not None:
                    note(f"warning [{info.error.code}]: {info.error}")
        return registry

    def note_stale_worker(self, task: str) -> None:
        """Say what to do where a worker does not know a task that is installed here.

        A worker loads its plugins once, when it starts.
        """
        if task in self.registry(self.settings()).tasks:
            note(f"{task} is installed here, but the worker does not know it: start it again.")


@functools.cache
def _load_registry(only: tuple[str, ...] | None) -> Registry:
    from gptflow.plugins import Registry

    return Registry.load(only)


def exit_code(result: Result) -> int:
    """0, or the exit code of the error that a job ended in."""
    from gptflow.errors import JobFailed
    from gptflow.result import from_info

    if result.ok:
        return 0
    return from_info(result.error).exit_code if result.error else JobFailed.exit_code


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def note(message: str) -> None:
    """A line for the person at the terminal; standard output stays the answer's."""
    click.echo(message, err=True)


def time_text(moment: float | None) -> str:
    """A Unix time as people read it, in UTC; empty where there is none."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_json(value: Any) -> None:
    """One JSON document, for programs to read; Chinese stays readable."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    empty: str | None = None,
) -> None:
    """A table as wide as the terminal; plain columns where the output is not one.

    Args:
        empty: what to tell the person in place of a table without rows.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows and empty is not None:
        note(empty)
        return
    out = console()
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        out.width = WIDTH
    out.print(table)


@contextmanager
def progress(title: str, total: int | None, unit: str = "rows") -> Iterator[Any]:
    """A bar with rate and time left on a terminal; a line every few seconds elsewhere.

    Yields a function to call with the number of units done so far.
    """
    if sys.stderr.isatty():
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
        with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, rate="")

            def update(done: int) -> None:
                speed = bar.tasks[0].speed
                bar.update(task, completed=done, rate=f"{speed:.1f} {unit}/s" if speed else "")

            yield update
        return
    with _plain_progress(title, total, unit) as report:
        yield report


@contextmanager
def _plain_progress(title: str, total: int | None, unit: str) -> Iterator[Any]:
    import time

    started = last = time.monotonic()
    count, told = 0, -1

    def line() -> None:
        nonlocal told
        if count == told:
            return
        told = count
        seconds = max(time.monotonic() - started, 1e-9)
        of = f"/{total}" if total else ""
        note(f"{title}: {count}{of} {unit}, {count / seconds:.1f} {unit}/s")

    def update(done: int) -> None:
        nonlocal count, last
        count = done
        if time.monotonic() - last >= 5:
            last = time.monotonic()
            line()

    yield update
    line()
