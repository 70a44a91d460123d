"""Programs in other languages enqueue by the published script: the examples, run for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.queue.embedded import EmbeddedServer

EXAMPLES = Path(__file__).parents[3] / "examples"
KEY = "a key for other languages"

Run = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module", params=["node", "go"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The example's command line, before its arguments."""
    language: str = request.param
    if shutil.which(language) is None:
        pytest.skip(f"{language} is not installed")
    if language == "node":
        version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        if int(version.stdout.removeprefix("v").split(".")[0]) < 18:
            pytest.skip(f"the example needs node 18, and this is {version.stdout.strip()}")
        return ["node", str(EXAMPLES / "node" / "run.mjs")]
    program = tmp_path_factory.mktemp("go") / "run"
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=EXAMPLES / "go",
        env=os.environ | {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return [str(program), "-script", str(EXAMPLES / "enqueue.lua")]


@pytest.fixture(scope="module")
def signed(server: EmbeddedServer, start_worker: Callable[..., Any]) -> Iterator[Client]:
    """A client of a worker that runs signed jobs only."""
    worker = start_worker(app="languages", signing_key=KEY)
    with Client(settings=config.load(redis_url=server.url, app="languages")) as client:
        yield client
    assert worker.terminate() == 0


@pytest.fixture
def run(command: list[str], signed: Client) -> Run:
    """Runs the example. Gives its exit code and the result that it printed."""

    def run_example(task: str, value: Any, *options: str, **more: str) -> tuple[int, Any]:
        given = {"GPTFLOW_APP": "languages", "GPTFLOW_SIGNING_KEY": KEY} | more
        given |= {"GPTFLOW_REDIS_URL": str(signed.settings.broker_url)}
        text = json.dumps(value, ensure_ascii=False)
        dash = "-" if command[0] == "node" else ""
        ended = subprocess.run(
            [*command, *(dash * o.startswith("-") + o for o in options), task, text],
            env={name: value for name, value in (os.environ | given).items() if value},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.stdout, ended.stderr
        return ended.returncode, json.loads(ended.stdout)

    return run_example


def test_a_job_is_run_and_its_result_comes_back(run: Run, signed: Client) -> None:
    value = {"value": 'é "quoted" <&> 漢字 🎉\n', "more": None}
    code, result = run("bed.echo", {"value": value}, "-class", "interactive")
    assert code == 0
    assert result["output"] == {"value": value}
    record = signed.transport.job(result["id"])
    assert (record.state, record.job_class, record.tenant) == ("done", "interactive", "default")


def test_a_failure_comes_back_as_one(run: Run) -> None:
    code, result = run("bed.echo", {"value": "bad"})
    assert code == 1
    assert (result["state"], result["error"]["code"]) == ("failed", "GF502")


def test_the_same_key_is_the_same_job(run: Run, command: list[str]) -> None:
    key = f"a key of {Path(command[0]).name}"
    ids = {run("bed.echo", {"value": 1}, "-key", key)[1]["id"] for _ in range(2)}
    assert len(ids) == 1


def test_a_large_input_is_kept_beside_its_job(run: Run) -> None:
    value = {"value": "ü" * 40_000}
    code, result = run("bed.echo", value)
    assert code == 0
    assert result["output"] == value


def test_what_is_not_signed_is_refused(run: Run) -> None:
    for options in ((), ("-raw",)):
        code, result = run("bed.echo", {"value": 1}, *options, GPTFLOW_SIGNING_KEY="")
        assert code == 1
        assert result["error"]["code"] == "GF310"


def test_a_bare_celery_message_is_adopted(run: Run, signed: Client) -> None:
    code, result = run("bed.echo", {"value": [1]}, "-raw")
    assert code == 0
    assert result["output"] == {"value": [1]}
    assert signed.transport.job(result["id"]).state == "done"


def test_a_server_that_does_not_know_the_script_is_sent_it(run: Run, signed: Client) -> None:
    signed.transport.store.client.script_flush()
    assert run("bed.echo", {"value": 1})[0] == 0
