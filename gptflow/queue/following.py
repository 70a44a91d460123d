"""Follower: a reader's place in the text of a job's stream.

What a worker writes to a stream may arrive twice: it writes again what it does not know to have
arrived. And some of it may never arrive: a server that loses power loses its last second. Each
piece says at which character of the text it begins, so a reader can tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gptflow.transport import Event


class Follower:
    """Gives each piece of text once, and says where some is missing.

    Args:
        after: the id of the last entry that the reader has seen; None if it has seen none.
    """

    def __init__(self, after: str | None) -> None:
        self._place = after or "0"
        self._from_start = after is None
        self._lengths: dict[int, int] = {}

    def follow(self, event: Event) -> Iterator[Event]:
        """What the reader is to be told when an entry arrives."""
        place, self._place = self._place, event.id
        if event.kind == "reset":
            self._lengths.clear()
            self._from_start = True
        if event.kind != "delta" or event.at is None:
            yield event
            return
        known = self._lengths.get(event.sample, 0 if self._from_start else event.at)
        self._lengths[event.sample] = max(known, event.at + len(event.text))
        if event.at > known:
            yield Event(id=place, kind="gap", sample=event.sample)
            known = event.at
        if text := event.text[known - event.at :]:
            yield dataclasses.replace(event, text=text, at=known)
