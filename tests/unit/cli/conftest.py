"""Calls the command line inside the test, on the scripted engine and without Redis."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptflow.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Invoke = Callable[..., Outcome]


@pytest.fixture
def gptflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Invoke:
    """`gptflow("run", "text.chat", "Hi")` as typed in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_MODEL", "scripted")
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("GPTFLOW_REDIS_URL", raising=False)

    def invoke(*args: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(args)
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return invoke
