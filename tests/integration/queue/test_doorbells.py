"""What Celery's transport notes down on the server of the messages that a worker takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.queue.app import make_app
from gptflow.queue.keys import queue_name
from gptflow.queue.redis_ledger import RedisLedger

QUEUE = queue_name("standard")


@pytest.fixture
def channel(own: Client) -> Iterator[Any]:
    with make_app(own.settings).connection() as connection:
        yield connection.channel()


@pytest.fixture
def noted(own: Client) -> Any:
    """How many messages are noted as taken and not acknowledged."""
    store = own.transport.store
    return lambda: store.client.hlen(f"{store.keys.prefix}unacked")


def test_a_doorbell_costs_no_note(own: Client, channel: Any, noted: Any) -> None:
    own.submit("text.echo", "Hello!")
    ledger = RedisLedger(own.transport.store, lease=15, dead_ttl=60)
    ledger.feed(1, 0)
    ledger.close()
    message = channel.basic_get(QUEUE)
    assert message is not None
    assert noted() == 0
    channel.basic_ack(message.delivery_tag)
    assert noted() == 0
    assert not channel.qos._doorbells


def test_a_message_past_the_ledger_is_noted_until_it_is_acknowledged(
    own: Client, channel: Any, noted: Any
) -> None:
    app = make_app(own.settings)
    app.send_task("gptflow.run", args=[{"v": 1}], queue=QUEUE)
    message = channel.basic_get(QUEUE)
    assert noted() == 1
    channel.basic_reject(message.delivery_tag, requeue=True)
    message = channel.basic_get(QUEUE)
    channel.basic_ack(message.delivery_tag)
    assert noted() == 0
