"""`gptflow monitor`: what it prints and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gptflow.cli import cli
from gptflow.errors import InvalidInput
from gptflow.monitoring.store import Store

DECLARED = """
[[monitor]]
name = "market"
source = "feeds/market.jsonl"
cron = "*/15 * * * *"
"""


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("GPTFLOW_MONITORS", raising=False)
    (tmp_path / "monitors.toml").write_text(DECLARED)
    return tmp_path


def gptflow(*args: str) -> Result:
    return CliRunner().invoke(cli, ["monitor", *args])


def printed(*args: str) -> Any:
    result = gptflow(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_declared_monitors_are_listed(data_dir: Path) -> None:
    (row,) = printed("list")
    assert row["name"] == "market"
    assert row["state"] == "running"
    assert row["last_run"] is None
    assert "market" in gptflow("list").stdout


def test_a_monitor_is_paused_and_resumed(data_dir: Path) -> None:
    assert gptflow("pause", "market").stdout == "Monitor market is paused.\n"
    assert printed("list")[0]["state"] == "paused"
    assert gptflow("pause", "market").stdout == "Monitor market was paused already.\n"
    assert gptflow("resume", "market").stdout == "Monitor market is running.\n"
    with Store.in_folder(data_dir).read() as view:
        assert not view.state("market").paused


def test_an_unknown_monitor_is_named_with_the_nearest(data_dir: Path) -> None:
    result = gptflow("pause", "markt")
    assert isinstance(result.exception, InvalidInput)
    assert result.exception.hint == "Did you mean 'market'?"


def test_a_run_needs_a_name_or_a_source(data_dir: Path) -> None:
    result = gptflow("run")
    assert result.exit_code == 2
    assert "--source" in result.output


def test_lists_of_nothing_are_empty(data_dir: Path) -> None:
    assert printed("alerts") == []
    assert printed("series", "market") == []
    assert gptflow("alerts").exit_code == 0
    assert gptflow("series", "market").exit_code == 0


def test_simulate_prints_each_detector_beside_the_dummy(data_dir: Path) -> None:
    options = ("--base", "10", "--phi", "1", "--surge", "5", "--series", "2")
    rows = printed("simulate", *options)
    assert [row["detector"] for row in rows] == ["gptflow", "flat z>3", "always"]
    assert rows[2]["recall"] == 1.0


def test_a_feed_is_run_here_by_hand(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTFLOW_MODEL", "scripted")
    feed = data_dir / "posts.jsonl"
    feed.write_text('{"id": "a", "ts": 1772442000, "text": "Shares sink"}\n{broken\n')
    result = gptflow("run", "--source", str(feed), "--local")
    assert result.exit_code == 0, result.output
    assert "No alerts." in result.stdout
    assert "line 2: not JSON" in result.stderr
    assert "insufficient_history" in result.stderr
    again = printed("run", "posts", "--source", str(feed), "--local")["output"]
    assert (again["monitor"], again["read"], again["new"]) == ("posts", 2, 0)
    assert printed("series", "posts")[0]["raw"] == 1
    assert [row["name"] for row in printed("list")] == ["market", "posts"]
