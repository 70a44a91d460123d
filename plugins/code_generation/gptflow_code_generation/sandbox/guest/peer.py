"""Calls across the wire: each side may use what the other has given it a reference to.

One class serves both sides. They differ in what they let the other do: the candidate's side
allows everything, for it has nothing to protect; the judge's side allows calling the functions
that a test passed as arguments, and nothing else.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptflow_code_generation.sandbox.guest.wire import Channel, Disconnected, decode, encode

Operations = Mapping[str, Callable[..., Any]]

CALL_ONLY: Operations = {"call": lambda function, *args, **kwargs: function(*args, **kwargs)}
ANYTHING: Operations = {
    **CALL_ONLY,
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "contains": operator.contains,
    "eq": operator.eq,
    "lt": operator.lt,
    "len": len,
    "bool": bool,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
}


class RemoteError(Exception):
    """An exception on the other side whose class is not one of Python's own."""


class Remote:
    """Something that lives on the other side.

    It equals nothing but other remote things, so a candidate cannot answer with an object that
    equals whatever a test expects.
    """

    def __init__(self, peer: Peer, number: int) -> None:
        vars(self).update(_peer=peer, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("setitem", self, key, value)

    def __contains__(self, item: Any) -> bool:
        return bool(self._peer.ask("contains", self, item))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._peer.ask("eq", self, other) is True

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._peer.ask("lt", self, other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __len__(self) -> int:
        length: int = self._peer.ask("len", self)
        return length

    def __bool__(self) -> bool:
        return self._peer.ask("bool", self) is True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._peer.ask("iter", self)
        while True:
            try:
                yield self._peer.ask("next", iterator)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __str__(self) -> str:
        return str(self._peer.ask("str", self))

    def __repr__(self) -> str:
        return str(self._peer.ask("repr", self))


class Peer:
    """One end of the wire.

    Args:
        operations: what the other side may have done here.
    """

    def __init__(self, channel: Channel, operations: Operations) -> None:
        self._channel = channel
        self._operations = operations
        self._lent: dict[int, Any] = {}
        self._borrowed: dict[int, Remote] = {}

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Have something done on the other side, and answer its questions meanwhile.

        Lists, dicts and sets that the other side changed are changed here too.

        Raises:
            RemoteError, or one of Python's own exceptions: what was raised there.
            Disconnected: the other side has gone.
        """
        self._channel.send(
            {
                "do": operation,
                "args": [self.encode(arg) for arg in args],
                "kwargs": {name: self.encode(arg) for name, arg in kwargs.items()},
            }
        )
        while "do" in (message := self._channel.receive()):
            self._serve(message)
        if "error" in message:
            raise _exception(message)
        for index, changed in message.get("changed", ()):
            _replace(args[index], self.decode(changed))
        return self.decode(message.get("value"))

    def serve(self) -> None:
        """Do what the other side asks, until it goes."""
        while True:
            try:
                message = self._channel.receive()
            except Disconnected:
                return
            self._serve(message)

    def encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def decode(self, data: Any) -> Any:
        return decode(data, self._resolve)

    def _serve(self, message: dict[str, Any]) -> None:
        try:
            args = [self.decode(arg) for arg in message["args"]]
            kwargs = {name: self.decode(arg) for name, arg in message["kwargs"].items()}
            value = self._operations[message["do"]](*args, **kwargs)
            answer = {"value": self.encode(value), "changed": self._changed(message["args"], args)}
        except Disconnected:
            raise
        except BaseException as error:  # noqa: BLE001  SystemExit must not end the process
            answer = describe(error)
        self._channel.send(answer)

    def _changed(self, before: list[Any], args: list[Any]) -> list[tuple[int, Any]]:
        now = [self.encode(arg) if isinstance(arg, list | dict | set) else None for arg in args]
        return [
            (index, data)
            for index, data in enumerate(now)
            if data is not None and data != before[index]
        ]

    def _refer(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"yours": value._number}
        self._lent[id(value)] = value
        return {"mine": id(value)}

    def _resolve(self, kind: str, number: int) -> Any:
        if kind == "yours":
            return self._lent[number]
        return self._borrowed.setdefault(number, Remote(self, number))


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as a message."""
    try:
        text = str(error)[:200]
    except Exception:  # noqa: BLE001  a candidate's exception may not even print
        text = ""
    number = error.errno if isinstance(error, OSError) else None
    return {"error": type(error).__name__, "message": text, "errno": number}


def _exception(message: dict[str, Any]) -> BaseException:
    name, text = str(message["error"]), str(message.get("message", ""))
    known = getattr(builtins, name, None)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        return RemoteError(f"{name}: {text}")
    if issubclass(known, OSError) and message.get("errno"):
        return known(message["errno"], text)
    try:
        return known(text)
    except TypeError:  # UnicodeDecodeError and its like take more
        return RemoteError(f"{name}: {text}")


def _replace(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
