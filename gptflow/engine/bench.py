"""Workloads to measure an engine by, and the measuring.

The three kinds are those of the project's comparison with other engines: the same lengths and
the same sharing of prefixes, greedy decoding that does not stop at the end token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from gptflow.heads import Generate
from gptflow.request import Engine, Request

Kind = Literal["mixed", "label", "single"]

_WARM_SEED = 10_000


class Item(TypedDict):
    """One request: its prompt's token ids, and how many tokens to draw."""

    ids: list[int]
    new: int


Draw = Callable[[int], Sequence[Item]]
"""A seed to the requests of one pass."""


def workload(kind: Kind, n: int = 64, seed: int = 7, vocabulary: int = 40_000) -> list[Item]:
    """Random token ids, the same for the same arguments.

    Args:
        kind: `mixed`, 96 tokens shared by all, 32 to 160 of their own, 32 to 96 to draw;
            `label`, 128 shared, 24 to 72 of their own, 1 to draw; `single`, one request of
            64 tokens with 128 to draw.
        vocabulary: ids are drawn below it, and above the first 300, which are often special.
    """
    dice = random.Random(seed)  # noqa: S311  not for secrets

    def ids(count: int) -> list[int]:
        return [dice.randrange(min(300, vocabulary // 2), vocabulary) for _ in range(count)]

    if kind == "single":
        return [Item(ids=ids(64), new=128)]
    shared = ids(96 if kind == "mixed" else 128)
    if kind == "mixed":
        return [
            Item(ids=shared + ids(dice.randint(32, 160)), new=dice.randint(32, 96))
            for _ in range(n)
        ]
    return [Item(ids=shared + ids(dice.randint(24, 72)), new=1) for _ in range(n)]


def run(engine: Engine, requests: Sequence[Item], kind: str) -> dict[str, Any]:
    """Submit all requests at once and wait for the last answer.

    Returns:
        `engine`, `kind`, `n`, `seconds`, `out_tok_s`, `in_tok_s`, `req_s`.
    """
    seconds = _seconds(engine, requests)
    return {
        "engine": f"gptflow {engine.model.dtype}".strip(),
        "kind": kind,
        "n": len(requests),
        "seconds": round(seconds, 2),
        "out_tok_s": round(sum(item["new"] for item in requests) / seconds, 1),
        "in_tok_s": round(sum(len(item["ids"]) for item in requests) / seconds, 1),
        "req_s": round(len(requests) / seconds, 2),
    }


def measure(
    engine: Engine, draw: Draw, kind: str, *, repeat: int = 1, warm_up: bool = True
) -> dict[str, Any]:
    """Run a workload several times, with new requests each time if `draw` has them.

    The rates come from passes that only wait for the answers. One more pass listens to every
    token, which costs the engine a little, and gives the latencies.

    Args:
        warm_up: run one pass first that does not count: memory is touched and libraries
            choose their kernels at the first use.

    Returns:
        What `run` returns, the figures being medians over `repeat` passes, and besides
        `repeat`; `ttft_ms_p50` and `_p99`, from submitting to the first text; `tpot_ms_p50`
        and `_p99`, the time per output token after the first, None where one token is drawn;
        `peak_rss_mb`, the process's memory at its largest while this ran.
    """
    if warm_up:
        _seconds(engine, draw(_WARM_SEED))
    _forget_peak()
    passes = [run(engine, draw(seed), kind) for seed in range(repeat)]
    rates = ("seconds", "out_tok_s", "in_tok_s", "req_s")
    medians = {name: round(statistics.median(row[name] for row in passes), 2) for name in rates}
    timings = _listen(engine, draw(repeat))
    return {
        **passes[0],
        **medians,
        "repeat": repeat,
        **_percentiles("ttft_ms", [1000 * timing.first for timing in timings]),
        **_percentiles("tpot_ms", [1000 * t.per_token for t in timings if t.tokens > 1]),
        "peak_rss_mb": _peak_rss(),
    }


@dataclasses.dataclass(slots=True)
class _Timing:
    """Of one request, in seconds since it was submitted."""

    tokens: int
    submitted: float
    first: float = math.nan
    end: float = math.nan

    def heard(self, _: object) -> None:
        """Some text has arrived, or the whole answer."""
        self.end = time.perf_counter() - self.submitted
        if math.isnan(self.first):
            self.first = self.end

    @property
    def per_token(self) -> float:
        return (self.end - self.first) / (self.tokens - 1)


def _listen(engine: Engine, requests: Sequence[Item]) -> list[_Timing]:
    timings = []
    futures = []
    for item in requests:
        timing = _Timing(item["new"], time.perf_counter())
        future = engine.submit(_request(item, on_delta=timing.heard))
        # A text that is held back to the end counts when it arrives.
        future.add_done_callback(timing.heard)
        timings.append(timing)
        futures.append(future)
    for future in futures:
        future.result()
    return timings


def _seconds(engine: Engine, requests: Sequence[Item]) -> float:
    began = time.perf_counter()
    for future in [engine.submit(_request(item)) for item in requests]:
        future.result()
    return time.perf_counter() - began


def _request(item: Item, **options: Any) -> Request:
    head = Generate(max_tokens=item["new"])
    return Request(prompt=tuple(item["ids"]), head=head, ignore_eos=True, **options)


def _percentiles(name: str, values: Iterable[float]) -> dict[str, float | None]:
    """The nearest ranks: with few requests the 99th percentile is the slowest one."""
    ranked = sorted(values)
    return {
        f"{name}_p{share}": round(ranked[math.ceil(share / 100 * len(ranked)) - 1], 2)
        if ranked
        else None
        for share in (50, 99)
    }


def _forget_peak() -> None:
    """Let the peak begin anew, where the system can: loading a model has one of its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_rss() -> float:
    """Megabytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
