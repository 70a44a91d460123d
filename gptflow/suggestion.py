"""Suggestions: the names that somebody may have meant who typed one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_MOST = 3
_SHORTEST = 3
"""Characters; less is the beginning of too much."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint such as "Did you mean 'text.chat'?", or None where nothing is like `name`.

    A few names that begin with about what was typed are like it too: `smolm2` is like
    `smollm2-135m-instruct`.
    """
    by_key = {each.lower(): each for each in sorted(known)}
    key = name.lower()
    close = get_close_matches(key, by_key, n=1) or _beginning_with(key, by_key)
    if not close:
        return None
    return f"Did you mean {' or '.join(repr(by_key[each]) for each in close)}?"


def _beginning_with(key: str, names: Iterable[str]) -> list[str]:
    if len(key) < _SHORTEST:
        return []
    like = [name for name in names if _alike(key, name[: len(key)])]
    return like if len(like) <= _MOST else []


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() >= 0.8
