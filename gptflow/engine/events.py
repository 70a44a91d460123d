"""Events: what has happened to requests lately."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Any, Literal, NamedTuple

from gptflow.engine.sequence import Decoding, Sequence
from gptflow.request import Request

Kind = Literal["admitted", "first_token", "preempted", "ended", "failed", "cancelled"]

_KEPT = 1024
_NAMED = 8
"""Requests to name in one event: thousands may wait for the same content-free scores."""


class Event(NamedTuple):
    """One thing that happened. It carries no text and no token.

    Attributes:
        at: Unix time.
        requests: ids of the requests concerned, the first few of them.
        job_class: of the sequence or request.
        sample: the continuation's number, for a request that draws several.
        code: of the error that a request failed with.
    """

    at: float
    kind: Kind
    requests: tuple[str, ...]
    job_class: str
    sample: int | None = None
    code: str | None = None


class Events:
    """The last 1,024 events. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=_KEPT)

    def record(self, kind: Kind, sequence: Sequence) -> None:
        """Something happened to a sequence, so to all requests that wait for it."""
        ids = tuple(pending.request.id for pending in itertools.islice(sequence.owners, _NAMED))
        sample = sequence.sample if isinstance(sequence, Decoding) else None
        self._ring.append(Event(time.time(), kind, ids, sequence.job_class, sample))

    def record_request(self, kind: Kind, request: Request, code: str | None = None) -> None:
        """Something happened to a request as a whole."""
        event = Event(time.time(), kind, (request.id,), request.job_class, None, code)
        self._ring.append(event)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The events for JSON, oldest first."""
        return [event._asdict() for event in self._ring.copy()]
