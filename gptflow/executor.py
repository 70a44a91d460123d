"""The executor: runs a task on an engine, from input to result."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from gptflow import config
from gptflow.concurrency import gather
from gptflow.config import Settings
from gptflow.context import Job, JobContext, Map, item_seed
from gptflow.errors import (
    GPTFlowError,
    InvalidOutput,
    JobFailed,
    JobTimeout,
    PluginError,
    raised_at,
)
from gptflow.plugins import AnyTask, Registry
from gptflow.request import Engine
from gptflow.result import Result

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Setup:
    directory: Path
    settings: Settings
    registry: Registry


class Executor:
    """Runs jobs on one engine. Jobs run concurrently on one event loop.

    Args:
        settings: what tasks are set up with; by default those of `gptflow.config.load`.
        map: how `Context.map` runs other tasks; by default right here, on the same engine.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        *,
        settings: Settings | None = None,
        map: Map | None = None,
    ) -> None:
        self.engine = engine
        self._settings = settings or config.load()
        self.registry = registry
        self.map: Map = map or self.map_here
        self._ready: set[str] = set()
        self._setting_up = threading.Lock()

    def setup(self, only: Sequence[str] | None = None) -> None:
        """Let tasks load what they need; without this each does so before its first job.

        Raises:
            PluginError: a task's `setup` raised.
        """
        for name in only if only is not None else self.registry.tasks:
            self._task(name)

    async def run(self, job: Job) -> Result:
        """Run one job to its end. Errors are in the result; cancelling this cancels the job."""
        started = time.perf_counter()
        failure: GPTFlowError
        plugin = self.registry.owners.get(job.task, "")
        context = JobContext(self.engine, job, plugin=plugin, map=self.map)
        try:
            task = await self._ready_task(job.task)
            output = await self._run(task, job, context)
        except GPTFlowError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  a plugin may raise anything
            failure = _unexpected(self.registry.task(job.task), error)
        else:
            return context.success(output, time.perf_counter() - started)
        return context.failure(failure, time.perf_counter() - started)

    async def run_many(self, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run one task on many inputs at once; results are in the inputs' order."""
        return await self.map_here(Job(id=task, task=task, input=None), task, inputs)

    async def map_here(self, parent: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run, for a job, one task on many inputs, on this engine."""
        jobs = [
            dataclasses.replace(
                parent,
                id=f"{parent.id}#{index}",
                task=task,
                input=value,
                seed=item_seed(parent.seed, index),
                on_delta=None,
            )
            for index, value in enumerate(inputs)
        ]
        return await gather(*map(self.run, jobs))

    async def _run(self, task: AnyTask, job: Job, context: JobContext) -> Any:
        parsed = task.parse(job.input)
        if job.deadline is None:
            output = await task.run(parsed, context)
        else:
            output = await _in_time(job.id, job.deadline, task.run(parsed, context))
        if not isinstance(output, task.output_type):
            raise InvalidOutput(
                f"Task {task.name!r} returned {type(output).__name__} where it declares "
                f"{task.output_type.__name__} ({task.location})."
            )
        return output.model_dump(mode="json")

    async def _ready_task(self, name: str) -> AnyTask:
        if name in self._ready:
            return self.registry.task(name)
        return await asyncio.to_thread(self._task, name)

    def _task(self, name: str) -> AnyTask:
        task = self.registry.task(name)
        with self._setting_up:
            if name in self._ready:
                return task
            try:
                task.setup(_Setup(task.directory, self._settings, self.registry))
            except GPTFlowError:
                raise
            except Exception as error:
                where = raised_at(error, type(task).__module__)
                raise PluginError(
                    f"Task {name!r}: setup raised {type(error).__name__}: {error} ({where})."
                ) from error
            self._ready.add(name)
        return task


async def _in_time(job_id: str, deadline: float, run: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(deadline - time.time()) as limit:
            return await run
    except TimeoutError:
        if not limit.expired():
            raise  # the task's own
        raise JobTimeout(f"Job {job_id} did not end before its deadline.") from None


def _unexpected(task: AnyTask, error: Exception) -> JobFailed:
    """An exception of a plugin's code, with the line; the traceback goes to the debug log.

    The message names the exception's type only: its text may quote the input.
    """
    where = raised_at(error, type(task).__module__)
    logger.error("Task %s: %s at %s", task.name, type(error).__name__, where)
    logger.debug("Task %s", task.name, exc_info=error)
    return JobFailed(f"Task {task.name!r} raised {type(error).__name__} at {where}.")
