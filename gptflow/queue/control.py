"""Control: what the workers say of themselves, over Celery's remote control."""

from __future__ import annotations

from typing import Any

from gptflow.config import Settings
from gptflow.queue.app import make_app
from gptflow.queue.transport import open_store


def stats(settings: Settings, *, timeout: float = 2.0) -> dict[str, dict[str, Any]]:
    """`celery inspect stats`, by node name: in `pool`, jobs in flight and the engine's counters.

    Args:
        timeout: seconds to wait for answers; all workers that are alive answer in less.

    Raises:
        ConfigError: there is no Redis URL.
        BrokerUnavailable: Redis does not answer.
    """
    store = open_store(settings)
    store.ping()  # Celery would go on trying for long
    app = make_app(settings)
    try:
        with store.reported():
            replies = app.control.inspect(timeout=timeout).stats()
    finally:
        app.close()
        store.close()
    return {node: dict(answer) for node, answer in (replies or {}).items()}
