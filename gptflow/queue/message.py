"""Celery's message, version 2, written by hand.

A submission is one script in Redis that checks the idempotency key, writes the job's record
and enqueues the message, all or nothing. Celery's own publishing is a round trip of its own,
and a caller that dies between the two would leave a record without a message. The format is
documented for that use (Celery, "Message Protocol"); any other language can write it, too.
"""

from __future__ import annotations

import base64
import json
import uuid

from gptflow.queue.keys import queue_name
from gptflow.queue.payload import Packed

TASK = "gptflow.run"
"""The one Celery task. Celery's tools show the GPTFlow task instead, from `shadow`."""

_EMBED = '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'


def celery_message(packed: Packed) -> str:
    """The message that makes a worker run the envelope, as it is pushed to the queue's list."""
    envelope = packed.envelope
    body = f"[[{packed.wire}],{{}},{_EMBED}]"
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK,
                "shadow": envelope.task,
                "id": envelope.id,
                "root_id": envelope.id,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "timelimit": [None, None],
                # Celery logs and broadcasts these: the id is all there is to see.
                "argsrepr": f"({envelope.id!r},)",
                "kwargsrepr": "{}",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": envelope.id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue_name(envelope.job_class)},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
