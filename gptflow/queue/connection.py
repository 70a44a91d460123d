"""Connections to Redis: short timeouts, no retry storms, and errors that name the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gptflow.config import Settings
from gptflow.errors import BrokerUnavailable, ConfigError

CONNECTIONS = 10_000
"""Each thread that waits or reads a stream has one; redis-py refuses the 101st by default."""

CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 4.0
"""Seconds. Together with one retry of a refused connection, nothing blocks for 5 seconds."""


def open_client(url: str, tls: Mapping[str, Any] | None = None) -> redis.Redis:
    """A thread-safe client of the server at `url`; nothing is sent yet.

    Args:
        tls: as `tls_options` gives them.

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
            max_connections=CONNECTIONS,
            retry=retry,
            decode_responses=True,
            **(tls or {}),
        )
    except ValueError as error:
        raise ConfigError(f"The Redis URL {redact(url)} is malformed: {error}.") from None


def tls_options(settings: Settings) -> dict[str, Any]:
    """How to check a server that is reached by TLS, as redis-py and kombu take it.

    Empty where the URL is not of TLS.

    Raises:
        ConfigError: a file is not there, or one of two is missing.
    """
    if urlsplit(settings.broker_url or "").scheme != "rediss":
        return {}
    files = {name: getattr(settings, name) for name in ("tls_ca", "tls_certificate", "tls_key")}
    for name, path in files.items():
        if path is not None and not path.is_file():
            raise ConfigError(
                f"There is no file {path}, which the setting {name} names.",
                hint=f"Correct GPTFLOW_{name.upper()}.",
            )
    if (files["tls_certificate"] is None) != (files["tls_key"] is None):
        raise ConfigError("The settings tls_certificate and tls_key go together.")
    given = {
        "ssl_ca_certs": files["tls_ca"],
        "ssl_certfile": files["tls_certificate"],
        "ssl_keyfile": files["tls_key"],
    }
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": settings.tls_check_hostname,
        **{name: str(path) for name, path in given.items() if path is not None},
    }


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
    except redis.exceptions.NoPermissionError as error:
        raise BrokerUnavailable(
            f"The user of {redact(url)} may not do this: {error}.",
            hint="docs/security.md has the rights of callers, workers and operators.",
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
