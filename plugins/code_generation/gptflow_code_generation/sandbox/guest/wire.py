"""Values as they travel between the candidate's process and the judge's.

Plain data goes by value, as JSON: numbers, text, bytes and the built-in containers. A subclass
of one of them goes as its base type, so that no overridden `__eq__` comes along. Everything
else stays where it is, and the other side gets a reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, BinaryIO

FRAME_BYTES = 16 * 1024 * 1024
"""Longest message; a candidate that answers with more is cut off."""

_WORD = 2**63


class Disconnected(Exception):
    """The other side has gone, or sent what is not a message."""


class Channel:
    """JSON messages, one a line, over a pair of pipes."""

    def __init__(self, input: BinaryIO, output: BinaryIO) -> None:
        self._input = input
        self._output = output

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._output.write(json.dumps(message).encode() + b"\n")
            self._output.flush()
        except OSError:
            raise Disconnected from None

    def receive(self) -> dict[str, Any]:
        line = self._input.readline(FRAME_BYTES)
        try:
            message = json.loads(line)
        except ValueError:
            raise Disconnected from None
        if not line.endswith(b"\n") or not isinstance(message, dict):
            raise Disconnected
        return message


def encode(value: Any, refer: Callable[[Any], dict[str, Any]]) -> Any:
    """The value as JSON. `refer` is given what is not plain data."""
    match value:
        case None | bool() | str() | float():
            return value
        case int():
            # Hexadecimal, because Python refuses to convert long integers to decimal.
            return value if -_WORD < value < _WORD else {"int": hex(value)}
        case complex():
            return {"complex": [value.real, value.imag]}
        case bytes():
            return {"bytes": value.hex()}
        case bytearray():
            return {"bytearray": value.hex()}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case list():
            return [encode(item, refer) for item in value]
        case tuple() | set() | frozenset():
            kind = next(base for base in (tuple, set, frozenset) if isinstance(value, base))
            return {kind.__name__: [encode(item, refer) for item in value]}
        case dict():
            pairs = [[encode(key, refer), encode(item, refer)] for key, item in value.items()]
            return {"dict": pairs}
        case _:
            return refer(value)


def decode(data: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """The value that `encode` was given. `resolve` is given references.

    Raises:
        Disconnected: this is not what `encode` writes.
    """
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((kind, body),) = data.items()
        match kind:
            case "int":
                return int(body, 16)
            case "complex":
                return complex(*body)
            case "bytes":
                return bytes.fromhex(body)
            case "bytearray":
                return bytearray.fromhex(body)
            case "range":
                return range(*body)
            case "tuple" | "set" | "frozenset":
                container = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
                return container(decode(item, resolve) for item in body)
            case "dict":
                return {decode(key, resolve): decode(item, resolve) for key, item in body}
            case _:
                return resolve(kind, body)
    except (KeyError, TypeError, ValueError):
        raise Disconnected from None
