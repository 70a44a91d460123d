"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any


def wait_until(
    condition: Callable[[], Any], seconds: float = 60, *, what: Any = "it", every: float = 0.02
) -> None:
    """Wait until something in another process is so; `what` names it, or tells how far it is."""
    until = time.monotonic() + seconds
    while not condition():
        told = what() if callable(what) else what
        assert time.monotonic() < until, f"{told} never came to be in {seconds:g} s"
        time.sleep(every)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
