"""A worker that trains: the queue's own, with one task and no model.

Trainings have an application of their own on the same server, so that no serving worker can take
one, and nothing that is served waits for one. Each runs in a process of its own, whose events go
into the job's stream. It stops after the step that it is in when the job is cancelled, and when
the worker is gone, however that went; whoever takes the job next goes on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pydantic import Field

from gptflow.config import Settings
from gptflow.context import JobContext
from gptflow.errors import ConfigError, MissingDependency, TrainingBroken
from gptflow.heads import Raw
from gptflow.hookspecs import hookimpl
from gptflow.plugins import Registry
from gptflow.prompt import RenderedPrompt
from gptflow.queue.crew import Parts
from gptflow.request import ModelInfo, Request
from gptflow.result import from_info
from gptflow.task import Output, Task
from gptflow.training.order import TASK, Job, Order, require_allowed

_NEEDED = ("torch", "peft", "sklearn", "numpy")
_LINE = 1 << 20
"""Bytes of an event at most."""


class Trained(Output):
    """What came of a training: see `gptflow.training.runs.RunRecord`."""

    run: str
    version: str | None = None
    trained_model: str | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    primary: str = ""
    rows: dict[str, int] = Field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0


class Train(Task[Order, Raw, Trained]):
    """Train an adapter.

    Args:
        command: the process that trains; the path of its job's file is added.
        environment: of that process.
    """

    name = TASK

    def __init__(
        self, settings: Settings, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._environment = dict(environment)

    async def run(self, input: Order, ctx: Any) -> Trained:
        assert isinstance(ctx, JobContext)
        require_allowed(input.data, self._settings.train_data)
        path = self._write(Job(id=ctx.job_id, order=input))
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, str(path), env=self._environment, limit=_LINE,
                # It stops when its standard input closes; Ctrl-C reaches it through us alone.
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            try:
                return await _follow(process, ctx)
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.terminate()
                    await process.wait()
        finally:
            path.unlink(missing_ok=True)

    def _write(self, job: Job) -> Path:
        folder = self._settings.data_dir / "runs" / ".jobs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{job.id}.json"
        path.write_text(job.model_dump_json(exclude_unset=True), encoding="utf-8")
        return path


async def _follow(process: Process, ctx: JobContext) -> Trained:
    """Pass the process's events on until it ends.

    Raises:
        GPTFlowError: the one that it ended in.
        TrainingBroken: it ended without a word.
    """
    assert process.stdout is not None
    last: dict[str, Any] = {}
    async for line in process.stdout:
        event = json.loads(line)
        if event["kind"] in ("done", "error"):
            last = event
        else:
            ctx.publish(line.decode())
    code = await process.wait()
    if last.get("kind") == "done":
        record = last["record"]
        return Trained(
            run=record["id"], **{k: record[k] for k in Trained.model_fields if k != "run"}
        )
    if last.get("kind") == "error":
        raise from_info(last["error"])
    raise TrainingBroken(
        f"The process that trains ended with exit code {code}.",
        hint="The worker's log says why. The run goes on from its checkpoint.",
    )


class NoEngine:
    """What a worker has in place of a model."""

    model = ModelInfo(id="training", sha256="", context=1)
    healthy = True

    def submit(self, request: Request) -> Future[Raw]:
        future: Future[Raw] = Future()
        future.set_exception(ConfigError("A training worker has no model to ask."))
        return future

    def cancel(self, request_id: str) -> bool:
        return False

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        return 0

    def adapters(self) -> Mapping[str, Any]:
        return {}

    def stats(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def for_training(
    settings: Settings,
    *,
    options: Sequence[str] = (),
) -> tuple[Settings, Parts]:
    """Settings and parts of a worker that trains.

    Args:
        options: of the `gptflow` command, for the processes that train.

    Raises:
        MissingDependency: a package that training needs is not installed.
    """
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(
                f"Training needs the package {package!r}.", hint="pip install 'gptflow[train]'"
            )
    command = [sys.executable, "-m", "gptflow", *options, "train", "--bound", "--job"]
    environment = {**os.environ, "GPTFLOW_MODEL": settings.model}
    task = Train(settings, command, environment)

    class Plugin:
        @hookimpl
        def register_tasks(self, register: Any) -> None:
            register(task)

    registry = Registry()
    registry.register(Plugin(), "train")
    # One at a time; and one that is stopped goes on elsewhere, so that nobody waits for its end.
    one = {"concurrency": 1, "in_flight": 1, "grace": 0.0}
    return settings.training.model_copy(update=one), Parts(NoEngine(), registry)
