"""The measurement of memory and start time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.model
def test_an_engine_is_started_and_its_slots_are_filled():
    command = [sys.executable, "-m", "benchmarks.memory", "--dtype=float32", "--threads=1"]
    command += ["--slots=4", "--slot-tokens=64", "--starts=1"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=240
    )
    report = json.loads(done.stdout)
    assert report["slots_used"] == 4
    assert report["dtype"] == "float32"
    assert report["start_seconds"] > 0
    assert 0.2 < report["pss_gb"] <= report["rss_gb"] + 0.001
    assert done.returncode == (0 if report["passed"] else 1)
