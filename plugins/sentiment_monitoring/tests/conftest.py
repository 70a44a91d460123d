"""Every test has a data folder of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("GPTFLOW_MONITORS", raising=False)
    return tmp_path
