"""What adapters cost: the same requests with none, with one, and spread over many.

    python benchmarks/adapters.py --adapters 32 100 --requests 64

Prints JSON: output tokens a second of every setting, measured in turns, and the ratios, by the
clock and by the processor's time. The prompts' beginning is at hand for every adapter. The
adapters are random, of rank 8 on every projection: what they say does not matter, what they
cost does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from gptflow.config import Settings
from gptflow.engine import TorchEngine, load
from gptflow.engine.bench import Item, workload
from gptflow.engine.lora_weights import Projection
from gptflow.heads import Generate
from gptflow.models import ModelStore
from gptflow.request import Request

_SHARED = 96
"""Tokens that all requests of the workload `mixed` begin with."""


def write_adapter(
    folder: Path, projections: Mapping[str, Projection], *, rank: int, seed: int
) -> Path:
    """A random adapter in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, shape in projections.items():
        for which, size in (("A", (rank, shape.fan_in)), ("B", (shape.fan_out, rank))):
            key = f"base_model.model.{module}.lora_{which}.weight"
            tensors[key] = torch.randn(size, generator=generator) / 100
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def requests(count: int, seed: int) -> list[Item]:
    """Lengths that are always the same, a beginning that is too, and ends that are new."""
    ends = workload("mixed", count, seed=seed)
    return [
        Item(ids=same["ids"][:_SHARED] + end["ids"][: len(same["ids"])][_SHARED:], new=same["new"])
        for same, end in zip(workload("mixed", count), ends, strict=True)
    ]


class Took(NamedTuple):
    """Seconds by the clock and of the processor; the latter bear others on the machine better."""

    clock: float
    processor: float


def run(engine: TorchEngine, items: list[Item], count: int) -> Took:
    """What all requests take over so many adapters."""
    began = Took(time.perf_counter(), time.process_time())
    futures = [
        engine.submit(
            Request(
                prompt=tuple(item["ids"]),
                head=Generate(max_tokens=item["new"], adapter=f"a{i % count}" if count else None),
                ignore_eos=True,
            )
        )
        for i, item in enumerate(items)
    ]
    for future in futures:
        future.result()
    return Took(time.perf_counter() - began.clock, time.process_time() - began.processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapters", type=int, nargs="+", default=[32])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    model = ModelStore(Settings().cache_dir).ensure(given.model)
    engine = load(
        model.path,
        model_id=model.name,
        sha256=model.sha256,
        dtype=given.dtype,
        threads=given.threads,
        slots=given.requests,
        slot_tokens=512,
        adapter_bytes=4 << 30,
    )
    settings = [0, 1, *given.adapters]
    seeds = itertools.count(1)
    took: dict[int, list[Took]] = {count: [] for count in settings}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(settings)):
            written = write_adapter(
                Path(folder) / f"a{i}", engine.projections, rank=given.rank, seed=i
            )
            engine.load_adapter(f"a{i}", written)
        for round_ in range(1 + given.rounds):  # the first one warms up
            for count in settings:
                items = requests(given.requests, next(seeds))
                one = run(engine, items, count)
                if round_:
                    took[count].append(one)
        stats = engine.stats()
        engine.close()
    tokens = sum(item["new"] for item in requests(given.requests, 0))
    clock = {n: statistics.median(one.clock for one in took[n]) for n in settings}
    processor = {n: statistics.median(one.processor for one in took[n]) for n in settings}
    report: dict[str, Any] = {
        "model": model.name,
        "dtype": engine.model.dtype,
        "requests": given.requests,
        "rank": given.rank,
        "threads": torch.get_num_threads(),
        "adapter_mib": round(stats["adapter_bytes"] / 2**20 / max(settings), 1),
        "reloads": stats["adapter_reloads"],
        "out_tok_s": {str(n): round(tokens / clock[n], 1) for n in settings},
        "to_one_adapter": {str(n): round(clock[1] / clock[n], 3) for n in given.adapters},
        "one_to_none": round(clock[0] / clock[1], 3),
        "processor": {
            "seconds": {str(n): round(processor[n], 1) for n in settings},
            "to_one_adapter": {
                str(n): round(processor[1] / processor[n], 3) for n in given.adapters
            },
            "one_to_none": round(processor[0] / processor[1], 3),
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
