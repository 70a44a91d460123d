"""The script for a GPU runs through on a CPU, so that no time on a GPU is lost with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu

ROOT = Path(__file__).parents[3]


def test_a_dry_run_checks_and_measures_all_there_is(tmp_path):
    out = tmp_path / "gpu.json"
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=240,
        stdout=subprocess.DEVNULL,
    )
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["failed"] == []
    assert len(report["parts"]) > 25
    assert report["parts"]["steps"]["ms_4_graphs"] > 0


def test_a_part_that_fails_is_named_and_the_others_go_on(monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    report = gpu.run({"bad": broken, "wrong": lambda: {"ok": False}, "good": lambda: {"x": 1}})
    assert report["failed"] == ["bad", "wrong"]
    assert "illegal memory" in report["parts"]["bad"]["error"]
    assert report["parts"]["good"]["x"] == 1
    monkeypatch.setattr(gpu, "_SECONDS", -1)
    assert "not begun" in gpu.run({"late": dict})["parts"]["late"]["error"]
