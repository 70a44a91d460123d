"""What the engine counts and measures."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from typing import Any

from gptflow.engine.pending import Pending
from gptflow.engine.prefix import PrefixCache
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.sequence import Decoding, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.engine.trace import Phases
from gptflow.histogram import Histogram

_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)

_SMOOTHING = 0.05
_WINDOW = 1024


class Window:
    """The last 1,024 measurements of something, in milliseconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)

    def add(self, seconds: float) -> None:
        self._values.append(1000 * seconds)

    def percentile(self, share: float) -> float:
        """The smallest measurement that `share` of all do not exceed; 0 if there is none."""
        values = sorted(self._values.copy())
        return values[max(math.ceil(share * len(values)) - 1, 0)] if values else 0.0


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
        cancelled: requests that their owners cancelled.
        failures: requests that failed once accepted, by the error's code.
        step_ms: how long a step takes, smoothed.
        rows_per_step: tokens run through the model in a step, smoothed.
        occupancy: share of the decode slots that hold a sequence in a step, 0..1, smoothed.
        tokens_per_second: rows run through the model in a second of work, smoothed.
        seconds: of work so far, by the phase of a step; see `TorchEngine.trace`.
        first_token_seconds: from submitting a request to its first token.
        further_token_seconds: between two tokens of a continuation, its mean.
    """

    requests: int = 0
    steps: int = 0
    peak_running: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    cancelled: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    step_ms: float = 0.0
    rows_per_step: float = 0.0
    occupancy: float = 0.0
    tokens_per_second: float = 0.0
    seconds: Counter[str] = dataclasses.field(default_factory=Counter)
    first_token_seconds: Histogram = dataclasses.field(default_factory=Histogram)
    further_token_seconds: Histogram = dataclasses.field(
        default_factory=lambda: Histogram(_TOKEN_SECONDS)
    )
    _steps: Window = dataclasses.field(default_factory=Window)
    _answers: Window = dataclasses.field(default_factory=Window)
    _first_tokens: Window = dataclasses.field(default_factory=Window)
    _further_tokens: Window = dataclasses.field(default_factory=Window)

    def step(self, phases: Phases, *, rows: int, running: int, occupancy: float) -> None:
        """Count a step of so many rows and sequences, with a share of the slots in use."""
        seconds = phases.total
        self.seconds.update(phases.seconds)
        weight = max(_SMOOTHING, 1 / (self.steps + 1))
        self.step_ms += weight * (1000 * seconds - self.step_ms)
        self.rows_per_step += weight * (rows - self.rows_per_step)
        self.occupancy += weight * (occupancy - self.occupancy)
        self.tokens_per_second += weight * (rows / seconds - self.tokens_per_second)
        self.steps += 1
        self.peak_running = max(self.peak_running, running)
        self._steps.add(seconds)

    def first_token(self, sequence: Decoding) -> None:
        """The first token of a continuation has been drawn."""
        sequence.first_token_at = time.perf_counter()
        for pending in sequence.owners:
            seconds = sequence.first_token_at - pending.submitted_at
            self._first_tokens.add(seconds)
            self.first_token_seconds.add(seconds)

    def ended(self, sequence: Sequence) -> None:
        """Count a sequence that ran to its end."""
        self.tokens_in += sequence.trunk
        self.cached_tokens += sequence.cached
        if isinstance(sequence, Decoding):
            self.tokens_out += len(sequence.output)
            further = len(sequence.output) - 1
            if sequence.first_token_at is not None and further > 0:
                seconds = (time.perf_counter() - sequence.first_token_at) / further
                self._further_tokens.add(seconds)
                self.further_token_seconds.add(seconds)

    def answered(self, pending: Pending) -> None:
        """Count a request that has all it waited for."""
        self._answers.add(time.perf_counter() - pending.submitted_at)

    def as_dict(self) -> dict[str, Any]:
        """The counters, with the medians and 99th percentiles of the windows."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.startswith("_")
        }
        values["failures"] = dict(self.failures)
        values["seconds"] = dict(self.seconds)
        for name in ("first_token_seconds", "further_token_seconds"):
            values[name] = values[name].as_dict()
        for name, window in (
            ("step_ms", self._steps),
            ("answer_ms", self._answers),
            ("first_token_ms", self._first_tokens),
            ("further_token_ms", self._further_tokens),
        ):
            values[f"{name}_p50"] = window.percentile(0.5)
            values[f"{name}_p99"] = window.percentile(0.99)
        return values


def gauges(scheduler: Scheduler, slots: KVSlots, prefixes: PrefixCache) -> dict[str, Any]:
    """What holds at this moment; `TorchEngine.stats` says what each one means."""
    running = tuple(scheduler.running)
    kv_tokens = sum(sequence.done for sequence in running)
    return {
        "running": len(running),
        "waiting": scheduler.waiting,
        "waiting_by_class": scheduler.waiting_by_class,
        "slots": slots.slots,
        "slots_used": slots.slots - slots.free,
        "prefill_slots": slots.beside,
        "prefill_slots_used": slots.beside - slots.free_beside,
        "kv_tokens": kv_tokens,
        "kv_bytes": kv_tokens * slots.bytes_per_token,
        "kv_tokens_reserved": slots.reserved,
        "kv_tokens_limit": slots.budget,
        "prefixes": len(prefixes),
        "prefix_hits": prefixes.hits,
        "prefix_bytes": prefixes.nbytes,
        "preemptions": scheduler.preemptions,
    }
