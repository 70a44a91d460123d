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

DOORBELL = "doorbell"
"""Header of the messages that `feed.lua` pushes."""

_ID = re.compile(rb'"correlation_id": ?"(job_[0-9a-f-]{8,64})"|"id": ?"(job_[0-9a-f-]{8,64})"')


def _ignore(job_id: str, task: str, why: GPTFlowError) -> None:
    pass


class Message(virtual.Message):
    def __init__(self, payload: Any, *args: Any, **options: Any) -> None:
        # kombu would unpack it at once, to whatever size that may be.
        if payload["headers"].get("compression"):
            raise ValueError("it is compressed")
        super().__init__(payload, *args, **options)


class QoS(redis.QoS):
    """What was taken and not acknowledged: noted on the server, doorbells in memory only.

    Whether a doorbell was answered stands in the ledger, which rings again where it was not. The
    two round trips to note it and to forget it would be a fifth of what a message costs.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._doorbells: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        if message.headers.get(DOORBELL):
            self._doorbells.add(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if delivery_tag in self._doorbells:
            self._doorbells.discard(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if delivery_tag in self._doorbells:
            self.ack(delivery_tag)  # it will be rung again
        else:
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what was taken and not acknowledged, where the server can still be reached.

        kombu 5.7 raises an error here that Celery does not expect when it closes a connection
        that was lost, and the worker ends. The ledger rings again for what is not put back.
        """
        try:
            super().restore_unacked(client)
        except Exception as error:  # noqa: BLE001  of the server's, or a missing attribute
            logger.warning("Messages are not put back: %s.", type(error).__name__)
            if self._delivered is not None:
                self._delivered.clear()
        self._doorbells.clear()


class Channel(redis.Channel):
    """A channel that survives what is in its queues.

    Attributes:
        max_message: bytes of a queue's entry at most.
        refused: told of each entry that is dropped: an id, a task, why.
    """

    Message = Message
    QoS = QoS
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
