"""What the judge makes of whatever a candidate writes to the wire."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from gptflow_code_generation.sandbox.guest.peer import CALL_ONLY, Peer, Remote
from gptflow_code_generation.sandbox.guest.wire import Channel, Disconnected, decode, encode


def refuse(*args: Any) -> Any:
    raise AssertionError("there are no references here")


PLAIN = [
    *(None, True, 0, -(2**200), 1.5, math.inf, 1j, "ä\ud800", b"\x00", bytearray(b"x")),
    *([1, [2]], (1, (2,)), {1, 2}, frozenset({3}), {(1,): {"a": [None]}}, range(1, 9, 2)),
]


@pytest.mark.parametrize("value", PLAIN)
def test_plain_data_is_copied(value: object) -> None:
    copy = decode(encode(value, refuse), refuse)
    assert copy == value
    assert type(copy) is type(value)


def test_what_is_not_plain_becomes_a_reference() -> None:
    assert encode([len], lambda value: {"mine": value.__name__}) == [{"mine": "len"}]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"int": "x"},
        {"int": 1},
        {"set": [[1]]},
        {"dict": [[1]]},
        {"bytes": "zz"},
        {"a": 1, "b": 2},
    ],
)
def test_garbage_ends_the_connection(data: object) -> None:
    with pytest.raises(Disconnected):
        decode(data, refuse)


@pytest.mark.parametrize("line", [b"", b"not json\n", b"[1]\n", b'{"value": 1}'])
def test_a_line_that_is_no_message_ends_the_connection(line: bytes) -> None:
    channel = Channel(io.BytesIO(line), io.BytesIO())
    with pytest.raises(Disconnected):
        channel.receive()


def test_the_judge_lets_a_candidate_call_what_it_was_given_and_nothing_else() -> None:
    peer = Peer(Channel(io.BytesIO(), io.BytesIO()), CALL_ONLY)
    assert set(peer._operations) == {"call"}
    with pytest.raises(Disconnected):
        peer.decode({"yours": id(peer)})


def test_a_remote_thing_equals_no_plain_value() -> None:
    assert Remote(Peer(Channel(io.BytesIO(), io.BytesIO()), CALL_ONLY), 1) != 1
