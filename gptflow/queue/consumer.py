"""The worker's consumer: Celery's, except that no message's content reaches the log.

And that it takes no message while the engine has no room for it.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps, signals
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks

logger = logging.getLogger(__name__)


class DiscreetConsumer(Consumer):
    """Drops what cannot be understood, and says so without quoting it."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._drop(message, f"it cannot be decoded ({type(exc).__name__})", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._drop(message, "it is not a task", None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._drop(message, f"there is no Celery task {message.headers['task']!r:.80}", exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._drop(message, f"it is malformed ({type(exc).__name__})", exc)

    def _drop(self, message: Any, why: str, error: Exception | None) -> None:
        headers = message.headers if isinstance(message.headers, dict) else {}
        logger.error("Dropped message %.80s: %s.", headers.get("id", "without an id"), why)
        message.ack_log_error(logger, self.connection_errors)  # type: ignore[attr-defined]
        signals.task_rejected.send(sender=self, message=message, exc=error)


class Gate(bootsteps.StartStopStep):
    """Keeps kombu from popping messages that the pool could not take."""

    requires = (Tasks,)

    def start(self, c: Any) -> None:
        qos, pool = c.task_consumer.channel.qos, c.pool
        within_limits = qos.can_consume
        qos.can_consume = lambda: pool.has_room and within_limits()
