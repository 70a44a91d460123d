"""The worker's consumer: Celery's, except that no message's content reaches the log.

And that it takes no message while the engine has no room for it, runs no task but those of a
list, and puts on record what it refuses.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps, signals
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks

from gptflow.errors import GPTFlowError, MalformedMessage, TaskNotFound
from gptflow.queue.intake import allowed, guarded
from gptflow.queue.message import TASK

logger = logging.getLogger(__name__)


class DiscreetConsumer(Consumer):
    """Drops what cannot be understood, and says so without quoting it."""

    def update_strategies(self) -> None:
        super().update_strategies()
        strategies, settings = self.strategies, self.app.settings  # type: ignore[attr-defined]
        kept = allowed(strategies, settings)
        for name in set(strategies) - set(kept):
            del strategies[name]
        strategies[TASK] = guarded(strategies[TASK], settings)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._drop(message, MalformedMessage(f"It cannot be decoded ({type(exc).__name__})."), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._drop(message, MalformedMessage("It is not a task."), None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        name = f"{message.headers['task']!r:.80}"
        self._drop(message, TaskNotFound(f"This worker runs no Celery task {name}."), exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._drop(message, MalformedMessage(f"It is malformed ({type(exc).__name__})."), exc)

    def _drop(self, message: Any, why: GPTFlowError, error: Exception | None) -> None:
        headers = message.headers if isinstance(message.headers, dict) else {}
        job_id = headers.get("id")
        logger.error(
            "Dropped message %.80s: [%s] %s", job_id or "without an id", why.code, why.message
        )
        message.ack_log_error(logger, self.connection_errors)  # type: ignore[attr-defined]
        self.pool.refuse(str(job_id), str(headers.get("shadow") or "?"), why)
        signals.task_rejected.send(sender=self, message=message, exc=error)


class Gate(bootsteps.StartStopStep):
    """Keeps kombu from popping messages that the pool could not take."""

    requires = (Tasks,)

    def start(self, c: Any) -> None:
        channel, pool = c.task_consumer.channel, c.pool
        within_limits = channel.qos.can_consume
        channel.qos.can_consume = lambda: pool.has_room and within_limits()
        channel.refused = pool.refuse
