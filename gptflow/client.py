"""The client: how another service enqueues jobs. Needs neither torch nor the plugin."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gptflow import config
from gptflow.envelope import Envelope
from gptflow.errors import InvalidInput
from gptflow.job import Batch, Job
from gptflow.open_batch import OpenBatch, as_json
from gptflow.open_batch import split_row as split_row
from gptflow.packing import ITEMS_PER_MESSAGE as ITEMS_PER_MESSAGE
from gptflow.request import JobClass
from gptflow.tracing import trace_context
from gptflow.transport import Transport, connect
from gptflow.validation import check_seconds

if TYPE_CHECKING:
    from gptflow.plugins import Registry
    from gptflow.request import Engine


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
            input=as_json(input),
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
        self,
        task: str,
        input: Any,
        *,
        timeout: float | None = None,
        on_reset: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Iterator[str]:
        """Submit a job and yield its text piece by piece as it is decoded.

        A connection that breaks is made again, and the text goes on where it was.

        Args:
            on_reset: called when the text starts again with the next piece, because the job
                was run once more and wrote something else. Without, such a piece just follows.

        Raises:
            GPTFlowError: the error that the job ended in, after the last piece.
        """
        job = self.submit(task, input, timeout=timeout, stream=True, **options)
        return job.stream(timeout, on_reset=on_reset)

    def open_batch(
        self,
        task: str,
        *,
        tenant: str = "default",
        job_class: JobClass = "batch",
        seed: int | None = None,
        wait: bool = True,
        batch_id: str | None = None,
    ) -> OpenBatch:
        """Begin a batch whose rows are added one by one, however many there will be.

        Args:
            wait: whether to wait where the queue is full before the first row was accepted.
                Later on, adding rows always waits.
            batch_id: of a batch that broke off and is now given the same rows in the same
                order: what it had been given is not run again.

        Raises:
            InvalidInput: an option does not fit.
            JobNotFound: there is no batch `batch_id`.
        """
        return OpenBatch(
            self._transport,
            task,
            tenant=tenant,
            job_class=job_class,
            seed=seed,
            wait=wait,
            limit=self.settings.max_payload,
            batch_id=batch_id,
        )

    def submit_many(
        self,
        task: str,
        rows: Iterable[Any],
        *,
        tenant: str = "default",
        job_class: JobClass = "batch",
        seed: int | None = None,
        wait: bool = True,
    ) -> Batch:
        """Enqueue many items of one task, 64 a message.

        Rows are taken from the iterable as they are sent, so there may be any number of them.

        Args:
            rows: bare inputs, with an `id` or without, or `{"custom_id": ..., "input": ...}`.
            wait: whether to wait where the queue is full from the start; see `open_batch`.

        Raises:
            BrokerUnavailable: Redis does not answer.
            InvalidInput: there are no rows, or one of them is not JSON. Nothing is left of
                the batch then.
            QueueFull: the queue is full, and `wait` is off; nothing was enqueued.
        """
        with self.open_batch(
            task, tenant=tenant, job_class=job_class, seed=seed, wait=wait
        ) as batch:
            for row in rows:
                batch.add(row)
        return batch.handle

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
