"""Keyspace: what stays in the server once everything has ended."""

from __future__ import annotations

from typing import Any

from gptflow.queue.keys import Keys

BASELINE = ("policy", "totals", "jobs", "dead", "schedule:*", "_kombu.binding*")
"""Keys that stay for ever; each of them is bounded."""

OF_THE_KILLED = ("unacked", "unacked_index")
"""What kombu keeps of messages that a killed worker had just taken, until its time-out."""


def leaks(client: Any, app: str, *, killed: bool) -> dict[str, Any]:
    """Keys of an application that will never go away, and are not of the baseline."""
    allowed = BASELINE + (OF_THE_KILLED if killed else ())
    prefix = Keys(app).prefix
    keys = list(client.scan_iter(f"{_literal(prefix)}*", count=1000))
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        lives = dict(zip(keys, pipe.execute(), strict=True))
    found: dict[str, Any] = {}
    for key, life in lives.items():
        name = key.removeprefix(prefix)
        if life == -1 and not any(_fits(name, known) for known in allowed):
            found[name] = describe(client, key)
    return found


def foreign(client: Any, app: str) -> list[str]:
    """Keys outside the application's prefix."""
    prefix = Keys(app).prefix
    return [key for key in client.scan_iter(count=1000) if not key.startswith(prefix)]


def describe(client: Any, key: str) -> str:
    """A key's kind and size, for the message of a failed test."""
    kind = client.type(key)
    sizes = {"hash": "hlen", "zset": "zcard", "set": "scard", "list": "llen", "stream": "xlen"}
    size = getattr(client, sizes[kind])(key) if kind in sizes else client.strlen(key)
    return f"{kind} of {size}"


def _fits(name: str, known: str) -> bool:
    return name.startswith(known[:-1]) if known.endswith("*") else name == known


def _literal(prefix: str) -> str:
    return prefix.replace("[", "\\[").replace("*", "\\*")
