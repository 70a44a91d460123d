"""Pulls that are killed, and pulls at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptflow.errors import ModelNotFound
from gptflow.models import ModelStore

SCRIPT = Path(__file__).with_name("scripted_pull.py")


@pytest.fixture
def pull(tmp_path):
    """Start a pull in another process; it is not left running."""
    running = []

    def start(seconds):
        command = [sys.executable, str(SCRIPT), str(tmp_path), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def shelf(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").iterdir() if p.name != ".locks")


def test_a_killed_pull_leaves_no_model_and_the_next_one_succeeds(pull, tmp_path):
    killed = pull(60)
    assert killed.stdout.readline() == "building\n"
    killed.kill()
    killed.wait()
    (left,) = shelf(tmp_path)
    assert left.startswith(".partial@tiny@")
    store = ModelStore(tmp_path, catalogue={})
    assert store.list() == []
    with pytest.raises(ModelNotFound):
        store.find("tiny")
    output, _ = pull(0).communicate(timeout=60)
    assert "waiting" not in output
    assert shelf(tmp_path) == ["tiny"]
    assert ModelStore(tmp_path, catalogue={}).verify("tiny")


def test_what_a_killed_pull_left_is_swept_by_a_pull_of_another_model(pull, tmp_path, helpers):
    killed = pull(60)
    assert killed.stdout.readline() == "building\n"
    folder = helpers.write_model(tmp_path / "other")
    store = ModelStore(tmp_path, catalogue={})
    store.pull(str(folder))
    assert len(shelf(tmp_path)) == 2  # it is still being built: hands off
    killed.kill()
    killed.wait()
    store.pull(str(folder))
    assert shelf(tmp_path) == ["other"]


def test_of_two_pulls_at_once_one_builds_and_the_other_waits(pull, tmp_path):
    first = pull(2)
    assert first.stdout.readline() == "building\n"
    second = pull(0)
    assert second.stdout.readline().startswith("waiting")
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert "building" not in outputs[1]
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert results[0] == results[1]
    assert shelf(tmp_path) == ["tiny"]
