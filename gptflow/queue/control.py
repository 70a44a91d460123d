"""Control: what the workers say of themselves, over Celery's remote control."""

from __future__ import annotations

from typing import Any

from gptflow.config import Settings
from gptflow.queue.app import make_app
from gptflow.queue.connection import reported


def stats(settings: Settings, *, timeout: float = 2.0) -> dict[str, dict[str, Any]]:
    """`celery inspect stats`, by node name: in `pool`, jobs in flight and the engine's counters.

    Args:
        timeout: seconds to wait for answers; all workers that are alive answer in less.

    Raises:
        ConfigError: there is no Redis URL.
        BrokerUnavailable: Redis does not answer.
    """
    app = make_app(settings)
    try:
        with reported(settings.broker_url or ""), app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=1, timeout=4)
            replies = app.control.inspect(timeout=timeout, connection=connection).stats()
    finally:
        app.close()
    return {node: dict(answer) for node, answer in (replies or {}).items()}
