"""The worker's consumer: Celery's, except that no message's content reaches the log."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer

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
