"""RunTask: `gptflow.run` as callers see it. A call is an enqueued job, never a bare message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task
from celery.result import AsyncResult

from gptflow.errors import ConfigError, InvalidInput
from gptflow.queue.backend import job_id_of
from gptflow.queue.canvas import to_envelope

if TYPE_CHECKING:
    from gptflow.queue.app import App


class RunTask(Task):  # type: ignore[type-arg]
    """Enqueues by way of the ledger, by its rules: keys, limits, fair shares."""

    abstract = True
    app: App

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a job.

        Raises:
            QueueFull: too much waits already.
            InvalidInput: it is no job, or has options that a job cannot have.
            ConfigError: something follows it, and neither `signing_key` nor `allow_chains` is set.
            BrokerUnavailable: Redis does not answer; nothing was enqueued.
        """
        if kwargs:
            raise InvalidInput("gptflow.run takes an envelope, and nothing by name.")
        given = options | {"task_id": task_id, "link": link, "link_error": link_error}
        envelope = to_envelope(tuple(args or ()), given)
        job_id = self.app.transport.submit(envelope)
        if task_id is not None and job_id != job_id_of(task_id):
            raise InvalidInput(
                f"The key was used by job {job_id}, whose result has another id.",
                hint="gptflow.celery.job(..., key=...) gives jobs of the same key the same id.",
            )
        return self.AsyncResult(task_id or job_id)

    def apply(self, *args: Any, **options: Any) -> Any:
        raise ConfigError(
            "Jobs are not run by whoever sends them.",
            hint="gptflow.Client('memory://') runs them in this process.",
        )
