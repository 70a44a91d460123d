"""The hooks that a plugin may implement: nine, and no more than ten ever.

Implementations may take fewer arguments than are listed here, so hooks can grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from gptflow.envelope import Envelope
    from gptflow.errors import GPTFlowError
    from gptflow.heads import Head
    from gptflow.request import JobClass
    from gptflow.result import Result
    from gptflow.schedule import Overlap, Policy
    from gptflow.task import Task

hookspec = pluggy.HookspecMarker("gptflow")
hookimpl = pluggy.HookimplMarker("gptflow")


class RegisterSchedule(Protocol):
    def __call__(
        self,
        name: str,
        *,
        task: str,
        input: Any,
        cron: str | None = None,
        every: float | None = None,
        timezone: str = "UTC",
        policy: Policy = "last",
        catchup: float = 86_400.0,
        overlap: Overlap = "allow",
        job_class: JobClass = "standard",
        tenant: str = "default",
    ) -> None:
        """Run `task` on `input` whenever it is time; see `gptflow.schedule.Schedule`."""
        ...


class RegisterSource(Protocol):
    def __call__(self, scheme: str, read: Callable[[str], Iterable[Mapping[str, Any]]]) -> None:
        """Read rows from locations that end in `.scheme` or start with `scheme:`."""
        ...


@hookspec
def register_tasks(register: Callable[[Task[Any, Any, Any]], None]) -> None:
    """Register task instances: `register(MyTask())`."""


@hookspec
def register_heads(register: Callable[[type[Head], str], None]) -> None:
    """Register head kinds: `register(MyHead, "my_package.module:Computation")`."""


@hookspec
def register_schedules(register: RegisterSchedule) -> None:
    """Register schedules: `register("hourly", task="...", cron="0 * * * *", input={...})`."""


@hookspec
def register_metrics(register: Callable[[str, Callable[..., float]], None]) -> None:
    """Register evaluation metrics: `register("exact_match", function)`."""


@hookspec
def register_sources(register: RegisterSource) -> None:
    """Register readers of feeds: `register("rss", read)`."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `gptflow`: `cli.add_command(my_command)`."""


@hookspec
def on_job_finished(envelope: Envelope, result: Result) -> None:
    """Observe a job that ended well. An exception here is logged and never fails the job."""


@hookspec
def on_job_failed(envelope: Envelope, error: GPTFlowError) -> None:
    """Observe a job that failed. An exception here is logged and never fails anything else."""


@hookspec
def on_alert(alert: Mapping[str, Any]) -> None:
    """Deliver an alert that a monitor raised. An exception here is logged."""
