"""`python -m benchmarks.memory`: a worker's engine in memory, and how soon it is ready.

A process of its own loads the engine, as a worker does, and answers one request: that is the
start, timed from before the process existed. Then all slots are filled. The requests that come
first draw more tokens and have shorter prompts, so that all are nearly full at the same time;
`kv_tokens` of the answer says how full they were.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click

from benchmarks import machine
from benchmarks.peers.environments import find_model, model_option

MEMORY_GB = 1.6
START_SECONDS = 10.0

_LAST_DRAWS = 16
"""Tokens that the request drawing fewest draws; each one before it draws `_STAGGER` more."""
_STAGGER = 2
_EVERY = 0.05


@click.command()
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True)
@click.option("--slot-tokens", type=click.IntRange(64), default=512, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1))
@click.option("--starts", type=click.IntRange(1), default=3, show_default=True)
@click.option("--child", is_flag=True, hidden=True)
@model_option
def main(
    slots: int,
    slot_tokens: int,
    dtype: str,
    threads: int | None,
    starts: int,
    child: bool,
    model: str,
) -> None:
    """Print start time and memory as JSON; exit code 1 where a target is missed."""
    if child:
        _inside(Path(model), slots, slot_tokens, dtype, threads)
        return
    folder = find_model(model)
    command = [sys.executable, "-m", "benchmarks.memory", "--child", f"--model={folder}"]
    command += [f"--slots={slots}", f"--slot-tokens={slot_tokens}", f"--dtype={dtype}"]
    command += [f"--threads={threads}"] if threads else []
    # The first one reads the files from disk and does not count.
    runs = [_start(command, fill=number == starts) for number in range(starts + 1)]
    found = runs[-1][1]
    seconds = [run[0] for run in runs[1:]]
    report = {
        "machine": machine.describe(quick=True),
        "model": model,
        "slots": slots,
        "slot_tokens": slot_tokens,
        **found,
        "start_seconds": round(statistics.median(seconds), 2),
        "start_seconds_all": [round(value, 2) for value in seconds],
        "target": {"rss_gb": MEMORY_GB, "start_seconds": START_SECONDS},
        "passed": found["rss_gb"] <= MEMORY_GB and statistics.median(seconds) <= START_SECONDS,
    }
    click.echo(json.dumps(report, indent=2))
    if not report["passed"]:
        raise SystemExit(1)


def _start(command: Sequence[str], *, fill: bool) -> tuple[float, dict[str, Any]]:
    """Seconds until a new process has answered its first request; what it then finds."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = process.stdout.readline()
        seconds = time.perf_counter() - began
        answer, _ = process.communicate("fill\n" if fill else "")
    if not ready or process.returncode:
        raise click.ClickException("the engine's process has failed")
    return seconds, json.loads(answer) if fill else {}


def _inside(folder: Path, slots: int, slot_tokens: int, dtype: Any, threads: int | None) -> None:
    """The engine's process: load, answer, say so, and fill the slots if told to."""
    from gptflow.engine import load

    engine = load(folder, dtype=dtype, slots=slots, slot_tokens=slot_tokens, threads=threads)
    _submit(engine, tuple(range(300, 332)), 1).result()
    print("ready", flush=True)
    if sys.stdin.readline():
        idle = _memory()
        futures = [
            _submit(engine, ids, slot_tokens - len(ids)) for ids in _prompts(slots, slot_tokens)
        ]
        peak = {"Rss": 0.0, "Pss": 0.0}
        tokens = used = 0
        while not all(future.done() for future in futures):
            now, stats = _memory(), engine.stats()
            peak = {name: max(peak[name], now[name]) for name in peak}
            tokens = max(tokens, stats["kv_tokens"])
            used = max(used, stats["slots_used"])
            time.sleep(_EVERY)
        for future in futures:
            future.result()
        found = {
            "dtype": engine.model.dtype,
            "rss_gb": round(peak["Rss"], 3),
            "pss_gb": round(peak["Pss"], 3),
            "idle_rss_gb": round(idle["Rss"], 3),
            "after_rss_gb": round(_memory()["Rss"], 3),
            "slots_used": used,
            "kv_tokens": tokens,
            "kv_full": round(tokens / (slots * slot_tokens), 3),
        }
        print(json.dumps(found), flush=True)
    engine.close()


def _prompts(slots: int, slot_tokens: int) -> list[tuple[int, ...]]:
    """Prompts without a common beginning."""
    draws = [
        min(_LAST_DRAWS + _STAGGER * (slots - 1 - i), slot_tokens - _LAST_DRAWS)
        for i in range(slots)
    ]
    return [
        tuple(300 + (7919 * i + 31 * k) % 10_000 for k in range(slot_tokens - new))
        for i, new in enumerate(draws)
    ]


def _submit(engine: Any, prompt: tuple[int, ...], new: int) -> Future[Any]:
    from gptflow.heads import Generate
    from gptflow.request import Request

    request = Request(prompt=prompt, head=Generate(max_tokens=new), ignore_eos=True)
    future: Future[Any] = engine.submit(request)
    return future


def _memory() -> dict[str, float]:
    """GB of this process, in all and by its share of what it shares. Linux only."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) * 1024 / 1e9
    return fields


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.memory")
