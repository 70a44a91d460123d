"""RedisTransport: how a client reaches workers through Redis. Imports neither torch nor Celery."""

from __future__ import annotations

from gptflow.config import Settings
from gptflow.errors import ConfigError
from gptflow.queue.connection import tls_options
from gptflow.queue.redis_store import RedisStore
from gptflow.queue.waiting import StoreTransport


def open_store(settings: Settings) -> RedisStore:
    """The store that the settings name; nothing is sent yet.

    Raises:
        ConfigError: there is no Redis URL.
    """
    if settings.broker_url is None:
        raise ConfigError(
            "No Redis URL is set.",
            hint="Set GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
        )
    tls = tls_options(settings)
    return RedisStore(settings.broker_url, settings.app, settings.result_ttl, tls=tls)


class RedisTransport(StoreTransport):
    """Submits jobs to a Redis or Valkey server and reads their results there.

    Raises:
        ConfigError: there is no Redis URL, or it is malformed.
    """

    store: RedisStore

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, open_store(settings))

    def ping(self) -> None:
        """Raises `BrokerUnavailable`."""
        self.store.ping()
