"""How much memory `gptflow submit` takes for a large file: as much as for a small one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gptflow.client import Client

CI, NIGHTLY = (2_000, 16_000), (10_000, 100_000)
"""Rows of the small file and of the large one."""

MORE = 8 << 20
"""Bytes that the large file may take more: what the allocator and SQLite's cache make of it."""

STATUS = Path("/proc/self/status")

# Not `ru_maxrss`: that counts what the process was before it became this program, too.
MEASURED = """
import gptflow.cli
try:
    gptflow.cli.main()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def submit(client: Client, folder: Path, rows: int) -> int:
    """Submit so many rows and check their results; the peak of the process's memory, in bytes."""
    source, out = folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl"
    with source.open("w") as stream:
        for number in range(rows):
            text = f"{number} " + "lorem ipsum " * 20
            stream.write(json.dumps({"custom_id": f"r{number}", "input": {"value": text}}) + "\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPTFLOW_")}
    url, app = str(client.settings.broker_url), client.settings.app
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, "submit", "bed.echo", str(source), "--out", str(out)],
        env=kept | {"GPTFLOW_REDIS_URL": url, "GPTFLOW_APP": app},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.monotonic() - started
    peak = int(process.stdout.split()[-2])
    with out.open() as stream:
        for number, line in enumerate(stream):
            row = json.loads(line)
            assert row["custom_id"] == f"r{number}"
            assert row["output"]["value"].startswith(f"{number} ")
    assert number == rows - 1
    print(f"{rows} rows: peak {peak / 1024:.1f} MiB, {rows / seconds:.0f} rows/s")
    return peak << 10


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not STATUS.exists(), reason="how much memory a process takes is asked of Linux")
def test_a_large_file_takes_no_more_memory_than_a_small_one(
    own: Client, start_worker: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    sizes = NIGHTLY if pytestconfig.getoption("--nightly") else CI
    worker = start_worker(app=own.settings.app)
    small, large = (submit(own, tmp_path, rows) for rows in sizes)
    assert large - small < MORE
    worker.terminate()
