"""What is imported when: a caller waits for nothing that it does not use."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "celery", "kombu", "redis", "numpy", "fastapi"}
GENEROUS = 2.0
"""Seconds; a quiet machine takes a sixth of it, and the target is 0.35 s."""


def imported_by(*arguments):
    """The top-level packages that a run of Python imports, by its own account."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_importing_gptflow_imports_nothing_but_itself():
    names = imported_by("-c", "import gptflow")
    assert "gptflow" in names
    assert not names & (HEAVY | {"pydantic", "jinja2", "click", "pluggy"})


def test_what_a_caller_or_an_author_touches_imports_nothing_heavy():
    program = (
        "from gptflow import client, config, errors, heads, plugins, task, testing, text, transport"
    )
    assert not imported_by("-c", program) & HEAVY


def test_a_client_imports_only_what_its_url_asks_for():
    program = "import gptflow; gptflow.Client('memory://').close()"
    assert not imported_by("-c", program) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run"],
        ["plugins"],
        ["data"],
        ["train"],
        ["tune"],
        ["runs"],
        ["feedback", "add"],
        ["adapters", "promote"],
    ],
)
def test_asking_for_help_imports_nothing_heavy(arguments):
    assert not imported_by("-m", "gptflow", *arguments, "--help") & HEAVY


def test_data_is_checked_without_what_trains_on_it():
    program = "import gptflow.training.data.checks, gptflow.training.data.writing"
    assert not imported_by("-c", program) & (HEAVY | {"scipy", "sklearn", "pyarrow"})


def test_answers_are_judged_without_torch():
    program = "import gptflow.training.report, gptflow.training.evaluation.floors"
    assert not imported_by("-c", program) & {"torch", "transformers", "matplotlib", "sklearn"}


def test_an_engine_on_a_model_server_imports_no_model_runtime():
    program = "import gptflow.engine.openai, gptflow.engine.tokenizer"
    assert not imported_by("-c", program) & (HEAVY | {"safetensors", "llguidance"})


def test_asking_for_help_is_quick():
    def seconds():
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "gptflow", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < GENEROUS


def test_every_public_name_can_be_imported():
    import gptflow

    assert all(getattr(gptflow, name) is not None for name in gptflow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gptflow.nothing


def test_the_layers_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
