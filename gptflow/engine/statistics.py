"""What the engine counts."""

from __future__ import annotations

import dataclasses
from typing import Any

from gptflow.engine.sequence import Decoding, Sequence

_SMOOTHING = 0.05


@dataclasses.dataclass(slots=True)
class Statistics:
    """Counters since the engine started. Written by its thread, read by any.

    Attributes:
        requests: accepted so far.
        steps: forward passes.
        peak_running: most sequences that held a slot in the same step.
        tokens_in: of the prompts of ended sequences.
        tokens_out: drawn or forced for them.
        cached_tokens: those of `tokens_in` that were not computed.
        step_ms: how long a step takes, smoothed.
        tokens_per_second: rows run through the model in a second of work, smoothed.
    """

    requests: int = 0
    steps: int = 0
    peak_running: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    step_ms: float = 0.0
    tokens_per_second: float = 0.0

    def step(self, *, seconds: float, rows: int, running: int) -> None:
        """Count a step of so many rows."""
        weight = max(_SMOOTHING, 1 / (self.steps + 1))
        self.step_ms += weight * (1000 * seconds - self.step_ms)
        self.tokens_per_second += weight * (rows / seconds - self.tokens_per_second)
        self.steps += 1
        self.peak_running = max(self.peak_running, running)

    def ended(self, sequence: Sequence) -> None:
        """Count a sequence that ran to its end."""
        self.tokens_in += sequence.trunk
        self.cached_tokens += sequence.cached
        if isinstance(sequence, Decoding):
            self.tokens_out += len(sequence.output)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
