"""What may be sent, and in what form."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

import pytest

from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import InvalidInput
from gptflow.queue.message import celery_message
from gptflow.queue.payload import Packed, pack


def packed(input: Any, **limits: int) -> Packed:
    limits = {"inline": 100, "limit": 1000, **limits}
    return pack(Envelope(task="a.b", input=input), reference="the-key", **limits)


def test_a_small_input_travels_in_the_envelope() -> None:
    result = packed({"text": "hi"})
    assert result.aside is None
    assert json.loads(result.wire)["input"] == {"text": "hi"}


def test_a_large_input_is_kept_aside() -> None:
    result = packed("x" * 200)
    assert result.aside == json.dumps("x" * 200)
    assert json.loads(result.wire)["input_ref"] == "the-key"
    assert "xxx" not in result.wire


def test_the_inline_limit_counts_bytes_of_the_text() -> None:
    assert packed("文" * 32, inline=98).aside is None
    assert packed("文" * 33, inline=98).aside is not None


def test_an_input_over_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(InvalidInput, match="1002 bytes; 1000 are allowed"):
        packed("x" * 1000)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, datetime(2026, 1, 1), b"bytes", object()],
    ids=["nan", "infinity", "set", "date", "bytes", "object"],
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="is not JSON"):
        packed({"value": value})


def test_an_input_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(InvalidInput):
        packed(endless)


def test_a_lone_surrogate_survives_as_an_escape() -> None:
    assert json.loads(packed("a\ud800").wire)["input"] == "a\ud800"


def batch_of(*values: Any) -> Envelope:
    items = tuple(Item(index=n, custom_id=str(n), input=v) for n, v in enumerate(values))
    return Envelope(task="a.b", items=items, batch=new_id("batch"))


def test_a_rows_number_is_in_the_message_that_refuses_it() -> None:
    with pytest.raises(InvalidInput, match="Row 1 "):
        pack(batch_of("fine", "x" * 2000), reference="k", inline=100, limit=1000)


def test_the_rows_of_a_large_batch_message_are_kept_aside() -> None:
    result = pack(batch_of("x" * 80, "y" * 80), reference="k", inline=100, limit=1000)
    assert [item["input"] for item in json.loads(result.aside or "")] == ["x" * 80, "y" * 80]
    again = Envelope.from_wire(json.loads(result.wire))
    assert again.items is None
    assert again.batch == result.envelope.batch


def test_the_message_shows_the_task_and_hides_the_input() -> None:
    result = packed({"text": "a secret"})
    message = json.loads(celery_message(result))
    assert message["headers"]["shadow"] == "a.b"
    assert "secret" not in json.dumps(message["headers"])
    (args, kwargs, _) = json.loads(base64.b64decode(message["body"]))
    assert kwargs == {}
    assert args == [json.loads(result.wire)]
