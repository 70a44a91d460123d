"""A plugin from outside the repository, written by `plugins new` and installed with pip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptflow.client import Client
from gptflow.config import Settings
from gptflow.errors import TaskNotFound
from gptflow.queue.embedded import EmbeddedServer
from gptflow.scaffold import new_plugin

TASK = "recommend.rank"
"""A task that is installed beside the tests, and that the tests' worker does not load."""


def test_an_installed_plugin_is_served_with_no_other_change(
    start_worker: Callable[..., Any], server: EmbeddedServer, testbed: Path, tmp_path: Path
) -> None:
    created = new_plugin("mood", head="choose", into=tmp_path)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    target = ["--disable-pip-version-check", "--target", str(testbed)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *target, str(created.folder)],
        check=True,
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
    )
    app = "outside"
    start_worker(app=app, plugins="mood")
    # The caller has no such plugin: it only names the task.
    with Client(settings=Settings(redis_url=server.url, app=app)) as client:
        tasks = client.transport.workers()[0].plugins
        assert tasks == ("mood",)
        result = client.submit("mood.choose", "What a day!").wait(timeout=30)
    assert result.ok, result.error


@pytest.mark.parametrize(
    "command", [("run", TASK, "@examples"), ("submit", TASK, "in.jsonl", "--wait")]
)
def test_a_worker_that_does_not_know_an_installed_task_is_to_be_started_again(
    worker: Any, server: EmbeddedServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "in.jsonl").write_text('"Shares fall"\n')
    done = subprocess.run(
        [sys.executable, "-m", "gptflow", "--redis", server.url, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == TaskNotFound.exit_code
    assert f"{TASK} is installed here" in done.stderr
    assert "start it again" in done.stderr
