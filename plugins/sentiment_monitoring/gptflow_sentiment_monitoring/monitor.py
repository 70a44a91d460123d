"""`sentiment.monitor`: one run of a monitor, as a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from gptflow import Context, Input, Result, Task
from gptflow.config import Settings
from gptflow.errors import InvalidInput
from gptflow.heads import Raw
from gptflow.monitoring import monitors, runner, sources
from gptflow.monitoring.monitors import Monitor
from gptflow.monitoring.runner import Failed, Report
from gptflow.monitoring.series import Opinion
from gptflow.monitoring.store import Store
from gptflow.plugins import Registry
from gptflow.result import from_info
from gptflow.task import Setup

CLASSIFY = "sentiment.classify"


class MonitorRun(Input):
    """Which monitor to run, and on what.

    A declared monitor needs its name only. Rows may be given with the job, or a source that
    workers may read; options given here are for monitors that are not declared.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    source: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    rows: list[dict[str, Any]] | None = Field(None, max_length=20_000)
    now: float | str | None = Field(None, description="Unix time or ISO 8601; by default the clock")
    fire: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    options: dict[str, int | float | str] = Field({}, description="as in monitors.toml")

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        return {"name": text}

    @model_validator(mode="after")
    def _one_feed(self) -> Self:
        if self.source is not None and self.rows is not None:
            raise ValueError("either source or rows is given, not both")
        return self


class RunMonitor(Task[MonitorRun, Raw, Report]):
    """Read a feed, classify what is new, and alert on surges of bad news.

    Feeds are read and alerts are told of by the worker's plugins; what was seen is kept in its
    data folder.
    """

    name = "sentiment.monitor"

    _settings: Settings
    _registry: Registry

    def setup(self, ctx: Setup) -> None:
        self._settings, self._registry = ctx.settings, ctx.registry

    async def run(self, input: MonitorRun, ctx: Context) -> Report:
        settings, registry = self._settings, self._registry
        path = monitors.default_path(settings)
        monitor = _monitor(input, path)

        def rows() -> Iterable[Mapping[str, Any]]:
            if input.rows is not None:
                return input.rows
            assert monitor.source is not None
            roots = monitors.roots(path, settings)
            return sources.rows(monitor.source, readers=registry.sources, roots=roots)

        async def classify(posts: Sequence[sources.Post]) -> list[Opinion | Failed]:
            given = [{"text": post.text, "lang": post.lang} for post in posts]
            return [_opinion(result) for result in await ctx.map(CLASSIFY, given)]

        report = await runner.run(
            monitor,
            rows,
            classify,
            Store.in_folder(settings.data_dir),
            fire=input.fire or ctx.job_id,
            now=_time(input.now),
            notify=lambda alert: registry.observe("on_alert", alert=alert),
        )
        if report.status == "insufficient_history":
            ctx.warn(
                f"insufficient_history: {report.history_days:.1f} days; alerts need "
                f"{runner.WARM_UP_DAYS}."
            )
        return report


def _monitor(input: MonitorRun, path: Path) -> Monitor:
    declared = monitors.load(path)
    if input.name in declared:
        if input.options or input.source is not None:
            raise InvalidInput(
                f"Monitor {input.name!r} is declared in {monitors.FILE_NAME}; its source and "
                "options cannot be given with a run.",
                hint="Change the declaration, or run under another name.",
            )
        monitor = declared[input.name]
    else:
        given = {**input.options, "name": input.name, "source": input.source}
        monitor = monitors.parse(given, f"Monitor {input.name!r}, options", error=InvalidInput)
    if monitor.source is None and input.rows is None:
        raise InvalidInput(
            f"Monitor {input.name!r} is not declared, and the run names no source.",
            hint=f"Declare it in {path}, or give `source` or `rows`.",
        )
    return monitor


def _time(value: float | str | None) -> float | None:
    if value is None:
        return None
    try:
        return sources.parse_time(value)
    except ValueError:
        raise InvalidInput(f"`now` is neither a Unix time nor ISO 8601: {value!r}.") from None


def _opinion(result: Result) -> Opinion | Failed:
    if not result.ok:
        error = from_info(result.error) if result.error else None
        reason = result.error.code if result.error else result.state
        return Failed(reason, final=isinstance(error, InvalidInput))
    output = result.output
    tickers = dict.fromkeys(entity["ticker"] for entity in output["entities"])
    return Opinion(
        topic=output["topic"]["label"],
        label=output["sentiment"]["label"],
        p_negative=output["sentiment"]["probs"]["negative"],
        entities=tuple(tickers),
    )
