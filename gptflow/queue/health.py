"""Health: what a Redis server says of itself, as far as it matters to a queue."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from gptflow.config import Settings
from gptflow.errors import ConfigError
from gptflow.queue.redis_store import RedisStore
from gptflow.queue.transport import open_store

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server's facts.

    Attributes:
        description: its kind and version.
        round_trip_ms: of one PING, the fastest of a few.
        eviction: its `maxmemory-policy`; anything but `noeviction` loses jobs.
        append_only: whether it writes an append-only file.
        time: its clock, in Unix seconds.
    """

    description: str
    round_trip_ms: float
    eviction: str
    append_only: bool
    time: float


NO_EVICTION = "redis-cli config set maxmemory-policy noeviction"
APPEND_ONLY = "redis-cli config set appendonly yes"
"""What to type; the server's configuration file should say the same."""


def inspect_server(settings: Settings) -> Server:
    """Ask the settings' server.

    Raises:
        ConfigError: there is no Redis URL.
        BrokerUnavailable: it does not answer.
    """
    store = open_store(settings)
    try:
        return ask(store)
    finally:
        store.close()


def ask(store: RedisStore) -> Server:
    """Ask a store's server.

    Raises:
        BrokerUnavailable: it does not answer.
    """
    with store.reported():
        client = store.client
        server, memory = client.info("server"), client.info("memory")
        persistence = client.info("persistence")
        seconds, microseconds = client.time()
    round_trip = min(_timed(store.ping) for _ in range(3))
    name = "Valkey" if "valkey_version" in server else "Redis"
    return Server(
        description=f"{name} {server.get('valkey_version') or server['redis_version']}",
        round_trip_ms=round_trip * 1000,
        eviction=memory["maxmemory_policy"],
        append_only=bool(persistence["aof_enabled"]),
        time=seconds + microseconds / 1e6,
    )


def require_keeping(store: RedisStore) -> None:
    """Refuse a server that may drop jobs, and warn of one that forgets them when it restarts.

    Raises:
        ConfigError: it evicts keys when its memory is full.
        BrokerUnavailable: it does not answer.
    """
    server = ask(store)
    if server.eviction != "noeviction":
        raise ConfigError(
            f"The Redis server's maxmemory-policy is {server.eviction}: it may drop jobs.",
            hint=f"{NO_EVICTION}, and set it in its configuration file.",
        )
    if not server.append_only:
        logger.warning(
            "The Redis server keeps no append-only file: a restart loses what is queued (%s).",
            APPEND_ONLY,
        )


def _timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
