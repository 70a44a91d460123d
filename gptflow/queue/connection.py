"""Connections to Redis: short timeouts, no retry storms, and errors that name the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qs, urlencode, urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gptflow.errors import BrokerUnavailable, ConfigError

CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 4.0
"""Seconds. Together with one retry of a refused connection, nothing blocks for 5 seconds."""


def open_client(url: str) -> redis.Redis:
    """A thread-safe client of the server at `url`; nothing is sent yet.

    Raises:
        ConfigError: the URL is malformed.
    """
    # A timeout is final: whoever does not answer within it will not in the next one either.
    retry = Retry(ConstantBackoff(0.1), 1, supported_errors=(redis.ConnectionError,))
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=retry,
            decode_responses=True,
        )
    except ValueError as error:
        raise ConfigError(f"The Redis URL {redact(url)} is malformed: {error}.") from None


def redact(url: str) -> str:
    """The URL without its password, for messages."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    netloc = f"{name}:***@{host}" if colon else f"{name}{at}{host}"
    query = {key: values for key, values in parse_qs(parts.query).items() if key != "password"}
    return _join(parts.scheme, netloc, parts.path, query)


def for_kombu(url: str) -> str:
    """The same server as kombu, Celery's transport, spells it: it has its own Unix sockets."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    query = parse_qs(parts.query)
    query["virtual_host"] = query.pop("db", ["0"])
    return _join("redis+socket", parts.netloc, parts.path, query)


def _join(scheme: str, netloc: str, path: str, query: Mapping[str, list[str]]) -> str:
    # urlunsplit drops the slashes of an empty host.
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")


@contextlib.contextmanager
def reported(url: str) -> Iterator[None]:
    """Turn redis-py's errors into ours.

    Raises:
        BrokerUnavailable: the server does not answer, or refuses.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise BrokerUnavailable(
            f"Redis at {redact(url)} does not answer: {_reason(error)}.",
            hint="Check GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
        ) from None
    except redis.ResponseError as error:
        raise BrokerUnavailable(f"Redis at {redact(url)} refused a command: {error}.") from None
    except redis.RedisError as error:
        raise BrokerUnavailable(
            f"What answers at {redact(url)} is not Redis ({type(error).__name__}).",
            hint="Check GPTFLOW_REDIS_URL.",
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, redis.AuthenticationError):
        return "the password is wrong or missing"
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "no reply in time"
    return str(error).rstrip(".") or type(error).__name__
