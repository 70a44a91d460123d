"""The side of an engine's process: JSON lines on standard input, JSON lines back.

    {"prompts": [[...], ...], "new": [...], "warm": {"prompts": ..., "new": ...}}
    {"seconds": 1.5, "first": [...]}

Only `generate` is timed. Nothing of gptflow is imported here: it is not in the environments
of the others.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1

Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""Prompts and how many tokens each one wants, greedily and past any end token, to tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How to load the model. `model` is a folder, or a file where the engine reads one."""

    model: Path
    precision: str
    threads: int


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A resident model. `settings` says what matters for its speed, for the report."""

    generate: Generate
    version: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def serve(load: Callable[[Options], Loaded]) -> None:
    """Load the model, then answer until standard input ends."""
    _die_with_parent()
    # Libraries print as they like: what they print goes to the log, with standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    began = time.perf_counter()
    loaded = load(Options(**vars(parser.parse_args())))
    ready = {
        "version": loaded.version,
        "settings": loaded.settings,
        "load_seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        work = json.loads(line)
        _generate(loaded.generate, work["warm"])
        began = time.perf_counter()
        outputs = _generate(loaded.generate, work)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "first": [output[0] for output in outputs]}
        print(json.dumps(answer), file=answers)


def _die_with_parent() -> None:
    """Be killed when the runner ends, however it does: a stopped process sees no end of input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _generate(generate: Generate, work: dict[str, Any]) -> list[list[int]]:
    outputs = generate(work["prompts"], work["new"])
    drawn = [len(output) for output in outputs]
    if drawn != work["new"]:
        raise SystemExit(f"asked for {work['new']} tokens, got {drawn}")
    return outputs
