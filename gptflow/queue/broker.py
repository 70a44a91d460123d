"""The broker's transport: kombu's for Redis, except that junk in a queue is dropped.

kombu lets an entry that is not one of its messages raise out of the event loop, which ends
the worker; anybody who can write to a queue could end every worker in turn. And it unpacks an
entry of any size, again and again; here one that is too large is let go as it came.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis, virtual

from gptflow.errors import GPTFlowError, MalformedMessage
from gptflow.queue.connection import redact

logger = logging.getLogger(__name__)

_ID = re.compile(rb'"correlation_id": ?"(job_[0-9a-f-]{8,64})"|"id": ?"(job_[0-9a-f-]{8,64})"')


def _ignore(job_id: str, task: str, why: GPTFlowError) -> None:
    pass


class Message(virtual.Message):
    def __init__(self, payload: Any, *args: Any, **options: Any) -> None:
        # kombu would unpack it at once, to whatever size that may be.
        if payload["headers"].get("compression"):
            raise ValueError("it is compressed")
        super().__init__(payload, *args, **options)


class Channel(redis.Channel):
    """A channel that survives what is in its queues.

    Attributes:
        max_message: bytes of a queue's entry at most.
        refused: told of each entry that is dropped: an id, a task, why.
    """

    Message = Message
    max_message = 1 << 25
    from_transport_options = (*redis.Channel.from_transport_options, "max_message")
    refused: Callable[[str, str, GPTFlowError], None] = staticmethod(_ignore)

    def _brpop_read(self, **options: Any) -> Any:
        client = self.client
        parse = client.parse_response

        def parse_response(*args: Any, **more: Any) -> Any:
            reply = parse(*args, **more)
            if reply and len(reply[1]) > self.max_message:
                raise _TooLarge(reply[1])
            return reply

        # The reply is looked at before it is unpacked.
        client.parse_response = parse_response
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except _TooLarge as entry:
            self._drop(
                MalformedMessage(f"It takes {entry.size} bytes; {self.max_message} are allowed."),
                entry.job_id,
            )
            raise Empty from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The entry's text stays out of the log: it may hold somebody's data.
            self._drop(MalformedMessage(f"It is not a message ({type(error).__name__})."))
            raise Empty from None
        finally:
            client.parse_response = parse

    def _drop(self, why: MalformedMessage, job_id: str = "") -> None:
        logger.error(
            "Dropped a queue entry%s: [%s] %s", job_id and f" {job_id}", why.code, why.message
        )
        self.refused(job_id or "?", "?", why)


class _TooLarge(Exception):
    def __init__(self, entry: bytes | str) -> None:
        self.size = len(entry)
        data = entry.encode() if isinstance(entry, str) else entry
        found = _ID.search(data)
        self.job_id = next(filter(None, found.groups())).decode() if found else ""
        super().__init__(self.size)


class Transport(redis.Transport):
    Channel = Channel


class BrokerConnection(Connection):
    """A connection that uses the transport above for every kind of Redis URL."""

    def get_transport_cls(self) -> type[Transport]:
        return Transport

    def as_uri(self, *args: Any, **options: Any) -> str:
        # For the log; kombu hides no password in the URL of a Unix socket.
        return redact(super().as_uri(*args, **options))


class BrokerAMQP(AMQP):
    Connection = BrokerConnection
