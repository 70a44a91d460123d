"""Scripts: the ledger's Lua, called by hash, one at a time or many in one round trip."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import redis

Name = Literal[
    "append",
    "beat",
    "cancel",
    "claim",
    "done",
    "enqueue",
    "feed",
    "followed",
    "items",
    "purge",
    "reap",
    "refuse",
    "release",
    "revive",
    "schedule_fire",
    "schedule_pause",
    "schedule_watch",
    "seal",
    "suspect",
]

_USES: dict[str, tuple[str, ...]] = {"schedule_fire": ("enqueue",)}
"""Scripts that others call as functions of `KEYS` and `ARGV`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One call of a script; the prefix that all of them take comes by itself."""

    name: Name
    keys: Sequence[str]
    args: Sequence[Any]


@functools.cache
def source(name: Name) -> str:
    """A script's text, with what the scripts share before it."""
    folder = resources.files("gptflow.queue").joinpath("lua")

    def text(part: str) -> str:
        return folder.joinpath(f"{part}.lua").read_text("utf-8")

    used = [f"local function {each}(KEYS, ARGV)\n{text(each)}\nend" for each in _USES.get(name, ())]
    return "\n".join((text("common"), *used, text(name)))


@functools.cache
def _hash(name: Name) -> str:
    return hashlib.sha1(source(name).encode()).hexdigest()  # noqa: S324  as Redis names scripts


class Scripts:
    """Calls scripts on a server, which is sent their text when it does not know them.

    Args:
        client: whose errors come through as they are.
        prefix: of every key.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self.round_trips = 0

    def run(self, call: Call) -> Any:
        """The script's reply."""
        self.round_trips += 1
        command = self._command(call)
        try:
            return self._client.execute_command(*command)
        except redis.exceptions.NoScriptError:
            self._client.script_load(source(call.name))
            return self._client.execute_command(*command)

    def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """The replies of several calls, in one round trip.

        Raises:
            redis.RedisError: that of the first call that failed, once all were made.
        """
        replies = self.try_all(calls)
        for reply in replies:
            if isinstance(reply, redis.RedisError):
                raise reply
        return replies

    def try_all(self, calls: Sequence[Call]) -> list[Any]:
        """As `run_all`, with the error of a call that failed in place of its reply."""
        replies = self._execute([self._command(call) for call in calls])
        missing = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, redis.exceptions.NoScriptError)
        ]
        if missing:
            for name in {calls[index].name for index in missing}:
                self._client.script_load(source(name))
            again = self._execute([self._command(calls[index]) for index in missing])
            for index, reply in zip(missing, again, strict=True):
                replies[index] = reply
        return replies

    def _execute(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self.round_trips += 1
        with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def _command(self, call: Call) -> list[Any]:
        digest = _hash(call.name)
        return ["EVALSHA", digest, len(call.keys), *call.keys, self._prefix, *call.args]
