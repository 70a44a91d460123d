"""The client: how another service enqueues jobs. Needs neither torch nor the plugin."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import PydanticSerializationError, to_jsonable_python

from gptflow import config
from gptflow.envelope import Envelope, new_id
from gptflow.errors import InvalidInput
from gptflow.job import Batch, Job
from gptflow.request import JobClass
from gptflow.tracing import trace_context
from gptflow.transport import BatchRecord, Transport, connect
from gptflow.validation import check_seconds

if TYPE_CHECKING:
    from gptflow.plugins import Registry
    from gptflow.request import Engine

ITEMS_PER_MESSAGE = 64
"""A message costs about 3 ms of worker time, whatever it holds."""

ROW_FIELDS = frozenset({"custom_id", "input"})


class Client:
    """Submits jobs and waits for them. Thread-safe.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or `memory://` for a worker inside this
            process; by default `GPTFLOW_REDIS_URL`.
        settings: in place of those that `gptflow.config.load` finds.
        engine: what serves a `memory://` client in place of the settings' model.
        registry: the plugins of a `memory://` client in place of the installed ones.

    Raises:
        ConfigError: no URL is set, or it is malformed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: config.Settings | None = None,
        engine: Engine | None = None,
        registry: Registry | None = None,
    ) -> None:
        if settings is None:
            settings = config.load(redis_url=url)
        elif url is not None:
            settings = config.load(**settings.model_dump(exclude={"redis_url"}), redis_url=url)
        self.settings = settings
        self._transport: Transport = connect(settings, engine=engine, registry=registry)

    def submit(
        self,
        task: str,
        input: Any,
        *,
        key: str | None = None,
        tenant: str = "default",
        job_class: JobClass = "standard",
        seed: int | None = None,
        timeout: float | None = None,
        stream: bool = False,
    ) -> Job:
        """Enqueue one job.

        Args:
            task: its name, such as `sentiment.classify`.
            input: the task's input as JSON, or a bare string for its text.
            key: the same key, for the same tenant and task, gives the same job.
            job_class: `interactive` jobs go first, `batch` jobs last.
            seed: of the random draws; by default derived from the job's id.
            timeout: seconds from now after which the answer is of no use.
            stream: publish the text as it is decoded, for `Job.events`.

        Raises:
            BrokerUnavailable: Redis does not answer; nothing was enqueued.
            InvalidInput: the input is not JSON or too large, or an option does not fit.
        """
        if input is None:
            raise InvalidInput(f"Task {task!r} was given no input.")
        check_seconds(timeout)
        envelope = Envelope.of(
            task=task,
            input=_as_json(input),
            key=key,
            tenant=tenant,
            job_class=job_class,
            seed=seed,
            stream=stream,
            deadline=None if timeout is None else time.time() + timeout,
            trace=trace_context(),
        )
        return Job(self._transport.submit(envelope), self._transport)

    def run(self, task: str, input: Any, *, timeout: float | None = None, **options: Any) -> Any:
        """`submit`, then wait for the output."""
        return self.submit(task, input, timeout=timeout, **options).result(timeout)

    def stream(
        self, task: str, input: Any, *, timeout: float | None = None, **options: Any
    ) -> Iterator[str]:
        """Submit a job and yield its text piece by piece as it is decoded.

        Raises:
            GPTFlowError: the error that the job ended in, after the last piece.
        """
        job = self.submit(task, input, timeout=timeout, stream=True, **options)
        for event in job.events(timeout=timeout):
            if event.kind == "delta" and event.sample == 0:
                yield event.text
        job.result(timeout)

    def submit_many(
        self,
        task: str,
        rows: Iterable[Any],
        *,
        tenant: str = "default",
        job_class: JobClass = "batch",
        seed: int | None = None,
    ) -> Batch:
        """Enqueue many items of one task, 64 a message.

        Args:
            rows: bare inputs, with an `id` or without, or `{"custom_id": ..., "input": ...}`.

        Raises:
            BrokerUnavailable: Redis does not answer.
            InvalidInput: there are no rows, or one of them is not JSON.
        """
        items = [
            {"index": index, "custom_id": custom_id, "input": _as_json(value)}
            for index, (custom_id, value) in enumerate(
                map(split_row, rows, map(str, itertools.count()))
            )
        ]
        if not items:
            raise InvalidInput("The batch is empty.")
        trace = trace_context()
        record = BatchRecord(id=new_id("batch"), task=task, total=len(items), submitted=time.time())
        chunks = [
            Envelope.of(
                task=task,
                items=items[start : start + ITEMS_PER_MESSAGE],
                batch=record.id,
                tenant=tenant,
                job_class=job_class,
                seed=seed,
                trace=trace,
            )
            for start in range(0, len(items), ITEMS_PER_MESSAGE)
        ]
        self._transport.submit_batch(record, chunks)
        return Batch(record.id, self._transport)

    def job(self, job_id: str) -> Job:
        """A handle to a job submitted earlier, from here or elsewhere."""
        return Job(job_id, self._transport)

    def batch(self, batch_id: str) -> Batch:
        """A handle to a batch submitted earlier, from here or elsewhere."""
        return Batch(batch_id, self._transport)

    def cancel(self, job_id: str) -> bool:
        """Stop a job or a batch. False if it had ended."""
        return self._transport.cancel(job_id)

    @property
    def transport(self) -> Transport:
        """The queue itself, for tools."""
        return self._transport

    def close(self) -> None:
        """Give back connections; a `memory://` client's worker stops."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def split_row(row: Any, name: str) -> tuple[str, Any]:
    """A batch row's own id and its input; `name` is for rows without an id."""
    if isinstance(row, Mapping):
        if "custom_id" in row and set(row) <= ROW_FIELDS:
            return str(row["custom_id"]), row.get("input")
        if "id" in row:
            return str(row["id"]), {name: value for name, value in row.items() if name != "id"}
    return name, row


def _as_json(value: Any) -> Any:
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidInput(f"The input is not JSON: {error}.") from None
