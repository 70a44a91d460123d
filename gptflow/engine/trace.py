"""Trace: what one step was made of, and where its time went."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

from gptflow.engine.sequence import Chunk, Decoding

_NAMED = 8
"""Requests to name with one chunk."""


class Phases:
    """A stopwatch with named laps, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside as part of a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Trace:
    """One step, without a text or a token of it. Made before the step, told after it."""

    def __init__(self, chunks: list[Chunk], phases: Phases) -> None:
        self._at = time.time()
        self._phases = phases
        self._chunks = [_describe(chunk) for chunk in chunks]
        self._rows = sum(map(len, chunks))

    def as_dict(self, **more: Any) -> dict[str, Any]:
        """The step for JSON; see `TorchEngine.trace`."""
        return {
            "at": self._at,
            **more,
            "rows": self._rows,
            "chunks": self._chunks,
            "phases_ms": {name: 1000 * s for name, s in self._phases.seconds.items()},
        }


def _describe(chunk: Chunk) -> dict[str, Any]:
    sequence = chunk.sequence
    is_drawn = isinstance(sequence, Decoding) and chunk.start >= sequence.trunk
    return {
        "requests": [pending.request.id for pending in itertools.islice(sequence.owners, _NAMED)],
        "kind": "decode" if is_drawn else "prefill",
        "head": type(sequence).__name__.lower(),
        "class": sequence.job_class,
        "slot": sequence.slot,
        "start": chunk.start,
        "stop": chunk.stop,
        "cached": sequence.cached,
        "preempted": sequence.preempted,
    }
