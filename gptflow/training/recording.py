"""Recording: the very request that a worker would make for an input, in place of an answer.

A task is run as a worker runs it, on an engine that keeps what it is asked and answers nothing. So
a head is trained on the prompts that it will be asked with, token by token, whatever the task does
before: cleaning, features, templates, chat formats, shortening.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from gptflow.adapter_info import AdapterInfo
from gptflow.context import Job, JobContext
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import GPTFlowError, NotTrainable
from gptflow.heads import Head, MultiHead, Raw
from gptflow.plugins import AnyTask
from gptflow.prompt import RenderedPrompt
from gptflow.request import ModelInfo, Request
from gptflow.result import Result
from gptflow.training.data.rows import Origin, Row

TOGETHER = 64
"""Inputs that are recorded side by side."""

SECONDS = 60.0
"""After which a task that has not asked its trained head yet never will."""


@dataclasses.dataclass(frozen=True, slots=True)
class _AnyHead(AdapterInfo):
    """An adapter that is trained for whatever it is asked."""

    def answers(self, kind: str) -> bool:
        return True


class _Recorder:
    """An engine that keeps the first request to one adapter, or the very first. It never answers.

    Args:
        alias: empty for the very first request.
    """

    def __init__(self, vocabulary: Vocabulary, model: ModelInfo, alias: str) -> None:
        self.model = model
        self.recorded: Future[Request] = Future()
        self.others: list[Head] = []
        self._vocabulary = vocabulary
        self._alias = alias

    @property
    def healthy(self) -> bool:
        return True

    def submit(self, request: Request) -> Future[Raw]:
        if self._alias and request.head.adapter != self._alias:
            self.others.append(request.head)
        elif not self.recorded.done():
            self.recorded.set_result(request)
        return Future()

    def cancel(self, request_id: str) -> bool:
        return True

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        return len(self._vocabulary.encode(prompt))

    def adapters(self) -> Mapping[str, AdapterInfo]:
        if not self._alias:
            return {}
        info = _AnyHead(alias=self._alias, sha256="", manifest=None, rank=0, nbytes=0)
        return {self._alias: info}

    def stats(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


class TaskRecorder:
    """Records what a task asks its adapter.

    Args:
        task: set up already, if it needs to be.
        adapter: the alias, one of those that its head names; None where it names only one.
        vocabulary: of the model that is trained.
        context: tokens that a worker has for one sequence.
        untrained: take a task whose head names no adapter, and record what it asks first.

    Raises:
        NotTrainable: its head names no adapter, or several, or not this one.
    """

    def __init__(
        self,
        task: AnyTask,
        vocabulary: Vocabulary,
        *,
        context: int,
        adapter: str | None = None,
        untrained: bool = False,
        seconds: float = SECONDS,
    ) -> None:
        self.task = task
        bare = untrained and not named_adapters(task)
        self.adapter = "" if bare else choose_adapter(task, adapter)
        self.context = context
        self._vocabulary = vocabulary
        self._model = ModelInfo(id="recorder", sha256="", context=context)
        self._seconds = seconds

    def record(self, inputs: Sequence[Any], rows: Sequence[Row] = ()) -> list[Request]:
        """What the task asks for each input, in the inputs' order.

        Args:
            rows: that the inputs are of, for errors to say where they stand.

        Raises:
            InvalidInput: an input does not fit the task.
            NotTrainable: the task asks for something else first, or never asks.
        """
        origins: Sequence[Origin | None] = [row.origin for row in rows] or [None] * len(inputs)
        return asyncio.run(self._record_all(inputs, origins))

    async def _record_all(
        self, inputs: Sequence[Any], origins: Sequence[Origin | None]
    ) -> list[Request]:
        requests: list[Request] = []
        for start in range(0, len(inputs), TOGETHER):
            part = slice(start, start + TOGETHER)
            requests += await asyncio.gather(*map(self._record, inputs[part], origins[part]))
        return requests

    async def _record(self, value: Any, origin: Origin | None) -> Request:
        try:
            return await self._record_one(value)
        except GPTFlowError as error:
            if origin is None:
                raise
            raise type(error)(f"{origin}: {error.message}", hint=error.hint) from None

    async def _record_one(self, value: Any) -> Request:
        recorder = _Recorder(self._vocabulary, self._model, self.adapter)
        job = Job(id="recorded", task=self.task.name, input=value)
        context = JobContext(recorder, job, plugin="", map=_no_map)
        parsed = self.task.parse(value)
        running = asyncio.ensure_future(self.task.run(parsed, context))
        recorded = asyncio.wrap_future(recorder.recorded)
        try:
            await asyncio.wait(
                {running, recorded}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if recorded.done():
                return recorded.result()
            if running.done() and isinstance(error := running.exception(), GPTFlowError):
                raise error
            asked = ", ".join(sorted({type(head).__name__ for head in recorder.others}))
            raise NotTrainable(
                f"Task {self.task.name!r} did not ask its adapter {self.adapter!r}"
                + (f"; it waits for {asked} first." if asked else "."),
                hint="Have `run` ask the trained head before anything that it waits for.",
            )
        finally:
            running.cancel()
            recorded.cancel()
            await asyncio.gather(running, recorded, return_exceptions=True)


async def _no_map(job: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
    raise NotTrainable(f"Task {job.task!r} runs {task!r} before it asks its trained head.")


def named_adapters(task: AnyTask) -> tuple[str, ...]:
    """The aliases that a task's head names, each once."""
    head = task.head
    parts = (head, *head.heads.values()) if isinstance(head, MultiHead) else (head,)
    return tuple(dict.fromkeys(p.adapter for p in parts if p is not None and p.adapter))


def choose_adapter(task: AnyTask, adapter: str | None = None) -> str:
    """The alias to train: the one that is given, or the only one that the task's head names.

    Raises:
        NotTrainable: its head names none, or several, or not this one.
    """
    named = named_adapters(task)
    if adapter is None and len(named) == 1:
        return named[0]
    if adapter in named:
        return adapter
    if not named:
        raise NotTrainable(
            f"The head of task {task.name!r} names no adapter, so nothing would serve it.",
            hint='Name one where the head is declared: `Classify(labels=..., adapter="mood")`.',
        )
    raise NotTrainable(
        f"The head of task {task.name!r} names the adapters {', '.join(named)}"
        + (f", not {adapter!r}." if adapter else "."),
        hint=f"Say which to train: `--adapter {named[0]}`.",
    )
