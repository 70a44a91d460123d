"""URLs: how they are shown, and how Celery's transport wants them."""

from __future__ import annotations

import pytest

from gptflow.errors import ConfigError
from gptflow.queue.broker import BrokerConnection
from gptflow.queue.connection import for_kombu, open_client, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hunter2@host:1/0", "redis://:***@host:1/0"),
        ("rediss://me:hunter2@host/0", "rediss://me:***@host/0"),
        ("redis://host/0?password=hunter2&db=3", "redis://host/0?db=3"),
        ("unix:///tmp/redis.sock", "unix:///tmp/redis.sock"),
        ("unix://:hunter2@/tmp/redis.sock?db=1", "unix://:***@/tmp/redis.sock?db=1"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_a_unix_socket_is_spelt_as_kombu_spells_it() -> None:
    assert for_kombu("unix:///a/b.sock?db=2") == "redis+socket:///a/b.sock?virtual_host=2"
    assert for_kombu("redis://host/0") == "redis://host/0"


def test_a_malformed_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="malformed"):
        open_client("redis://host:notaport/0")


def test_a_password_of_a_unix_socket_stays_out_of_celerys_log() -> None:
    shown = BrokerConnection(for_kombu("unix://:hunter2@/tmp/redis.sock")).as_uri()
    assert "hunter2" not in shown
    assert "/tmp/redis.sock" in shown


def test_more_than_a_hundred_threads_can_wait_at_once() -> None:
    client = open_client("redis://localhost")
    pool = client.connection_pool
    connections = [pool.make_connection() for _ in range(500)]  # none of them connects
    assert len(connections) == 500
    client.close()
