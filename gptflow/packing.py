"""Packing: which rows of a batch travel together in one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

ITEMS_PER_MESSAGE = 64
"""A message costs about 3 ms of worker time, whatever it holds."""

TOKENS_PER_MESSAGE = 16_384
"""Tokens of one message, about: a worker that dies takes no more than that along."""

BYTES_PER_TOKEN = 4
"""Of JSON in UTF-8, about; who submits has no tokeniser."""

T = TypeVar("T")


def estimate_tokens(json_text: str) -> int:
    """How many tokens a row takes, about."""
    return len(json_text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN


class Packer(Generic[T]):
    """Gathers rows until they make a message. The same rows always make the same messages."""

    def __init__(self) -> None:
        self._gathered: list[T] = []
        self._tokens = 0

    def add(self, row: T, tokens: int) -> Sequence[T]:
        """Take one more row. Returns the rows of a message that is full without it, if any."""
        full: Sequence[T] = ()
        if self._gathered and (
            len(self._gathered) == ITEMS_PER_MESSAGE or self._tokens + tokens > TOKENS_PER_MESSAGE
        ):
            full = self.rest()
        self._gathered.append(row)
        self._tokens += tokens
        return full

    def rest(self) -> Sequence[T]:
        """What has gathered, for the last message."""
        rows, self._gathered, self._tokens = self._gathered, [], 0
        return rows
