"""What machine a measurement ran on, and how fast it is at what an engine does.

`python -m benchmarks.machine` prints it as JSON. Shared machines change from hour to hour:
figures of two runs compare no better than these do.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROWS = (1, 4, 16, 64, 256)
"""Rows of activations that meet a weight: sequences that decode, or tokens of a prompt."""

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
_WEIGHT = (1536, 576)
_STREAMED = 512 << 20
"""Bytes of weights to cycle through, so that each comes from memory and not from a cache."""


def describe(*, quick: bool = False) -> dict[str, Any]:
    """The machine and its rates.

    Args:
        quick: leave the rates out, which take about 15 seconds.
    """
    model, flags = _cpuinfo()
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if not quick:
        torch.set_num_threads(cores())
        facts["copy_gb_s"] = copy_rate()
        facts["gemm_gflop_s"] = gemm_rates()
    return facts


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0))


def has(flag: str) -> bool:
    """Whether the CPU names this flag."""
    return flag in _cpuinfo()[1]


def copy_rate() -> float:
    """GB/s of a copy between two arrays, reads and writes counted, as STREAM counts them."""
    source = torch.ones(64 << 20)
    target = torch.zeros_like(source)
    return round(2 * source.nbytes / _best(lambda: target.copy_(source), 5) / 1e9, 1)


def gemm_rates() -> dict[str, dict[int, float]]:
    """GFLOP/s of stock matrix products by type and rows, the weights read from memory."""
    kinds = {"float32": _dense(torch.float32), "bfloat16": _dense(torch.bfloat16)}
    if "x86" in torch.backends.quantized.supported_engines:
        kinds["dynamic int8"] = _int8()
    return {
        kind: {rows: round(_gemm_rate(product, count, rows), 1) for rows in ROWS}
        for kind, (product, count) in kinds.items()
    }


Product = Callable[[int, torch.Tensor], Any]
"""The product of some rows with a weight, by its number."""


def _dense(dtype: torch.dtype) -> tuple[Product, int]:
    count = _STREAMED // (_WEIGHT[0] * _WEIGHT[1] * dtype.itemsize)
    weights = torch.randn(count, *_WEIGHT, dtype=dtype)
    return lambda i, x: torch.nn.functional.linear(x.to(dtype), weights[i]), count


def _int8() -> tuple[Product, int]:
    count = _STREAMED // (_WEIGHT[0] * _WEIGHT[1])
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still what there is
        weight = torch.quantize_per_channel(
            torch.randn(*_WEIGHT),
            scales=torch.full((_WEIGHT[0],), 0.03),
            zero_points=torch.zeros(_WEIGHT[0], dtype=torch.long),
            axis=0,
            dtype=torch.qint8,
        )
    packed = [torch.ops.quantized.linear_prepack(weight, None) for _ in range(count)]
    return lambda i, x: torch.ops.quantized.linear_dynamic(x, packed[i], True), count


def _gemm_rate(product: Product, count: int, rows: int) -> float:
    activations = torch.randn(rows, _WEIGHT[1])
    passes = max(1, count // rows)
    step = count // passes

    def run() -> None:
        for i in range(passes):
            product(i * step, activations)

    with torch.inference_mode():
        return 2e-9 * rows * _WEIGHT[0] * _WEIGHT[1] * passes / _best(run, 3)


def _best(run: Callable[[], Any], times: int) -> float:
    run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _cpuinfo() -> tuple[str, frozenset[str]]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), frozenset()
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    name = fields.get("model name", platform.machine())
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{name} ({family})", frozenset(fields.get("flags", "").split())


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
