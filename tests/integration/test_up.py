"""`gptflow up` and the demo: real processes, an embedded server, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptflow.errors import PluginNotFound


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPTFLOW_")}
    return kept | {"GPTFLOW_MODEL": "scripted", "GPTFLOW_DATA_DIR": str(tmp_path / "data")}


def _gptflow(*args: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptflow", *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_demo_runs_every_plugin_and_a_batch_and_stops(environment: dict[str, str]) -> None:
    done = _gptflow("up", "--demo", environment=environment)
    assert done.returncode == 0, done.stderr
    for task in ("customer.reply", "sentiment.classify", "recommend.rank", "code.generate"):
        assert task in done.stdout
    assert "200/200 rows" in done.stderr
    assert "exit code" not in done.stderr
    assert "The demo took" in done.stdout


@pytest.fixture
def running(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gptflow", "up"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("Ready. In another terminal" in line for line in process.stderr)
    yield process
    process.kill()
    process.stderr.close()
    process.wait()


def test_other_commands_find_it_without_being_told(
    running: subprocess.Popen[str], environment: dict[str, str], tmp_path: Path
) -> None:
    done = _gptflow("run", "text.chat", "Hello", environment=environment)
    assert (done.returncode, done.stdout) == (0, "A scripted answer.\n")
    assert done.stderr == ""

    [job] = json.loads(_gptflow("jobs", "list", "--json", environment=environment).stdout)
    assert (job["task"], job["state"]) == ("text.chat", "done")
    shown = json.loads(
        _gptflow("jobs", "show", job["id"], "--json", environment=environment).stdout
    )
    assert shown["result"]["output"]["text"] == "A scripted answer."
    assert _gptflow("jobs", "cancel", job["id"], environment=environment).returncode == 8

    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "Hi"}\n')
    sent = _gptflow("submit", "text.generate", str(tmp_path / "in.jsonl"), environment=environment)
    batch = json.loads(
        _gptflow("jobs", "show", sent.stdout.strip(), "--json", environment=environment).stdout
    )
    assert (batch["task"], batch["total"]) == ("text.generate", 1)
    fetched = _gptflow("jobs", "result", sent.stdout.strip(), environment=environment)
    assert json.loads(fetched.stdout)["custom_id"] == "a"

    checks = json.loads(_gptflow("doctor", "--json", environment=environment).stdout)
    found = {check["check"].split(" ")[0]: check["status"] for check in checks}
    assert found["redis"] == found["worker"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_it_leaves_no_process_behind(
    running: subprocess.Popen[str],
    environment: dict[str, str],
    eventually: Callable[..., None],
    number: signal.Signals,
) -> None:
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) >= 3, "server, worker and scheduler"
    running.send_signal(number)
    assert running.wait(30) == (-number if number == signal.SIGKILL else 0)
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    outcome = _gptflow("config", "show", "--json", environment=environment)
    settings = {row["name"]: row for row in json.loads(outcome.stdout)}
    assert settings["redis_url"]["source"] == "default"


def test_a_worker_that_cannot_start_ends_it_with_the_reason(environment: dict[str, str]) -> None:
    done = _gptflow("up", environment=environment | {"GPTFLOW_PLUGINS": "no_such_plugin"})
    assert done.returncode == PluginNotFound.exit_code
    assert "no_such_plugin" in done.stderr
    assert "Redis" not in done.stderr, "nothing was started for nothing"
