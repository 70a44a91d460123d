"""The documentation is run: its Python as it stands, its commands where it says so.

In each file the `python` blocks run in their order, as one module, with a worker in the same
process and a scripted model. A `console` block below a line `<!-- run -->` has its `$` lines run.
"""

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from gptflow.client import Client

REPOSITORY = Path(__file__).parents[2]
FILES = sorted([*REPOSITORY.glob("README*.md"), *REPOSITORY.glob("docs/*.md")])
ENVIRONMENT = {"GPTFLOW_REDIS_URL": "memory://", "GPTFLOW_MODEL": "scripted"}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    line: int
    marked: bool


def blocks(path):
    """Every fenced block of a file, with the line on which its code starts."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            language=match[1],
            code=match[2],
            line=text.count("\n", 0, match.start(2)) + 1,
            marked=text[: match.start()].rstrip("\n").endswith("<!-- run -->"),
        )
        for match in FENCE.finditer(text)
    ]


def name(path):
    return path.relative_to(REPOSITORY).as_posix()


@pytest.fixture
def module():
    """An empty module to run code in, as if it had been imported."""
    module = types.ModuleType("documented")
    sys.modules[module.__name__] = module
    yield module
    for value in list(vars(module).values()):
        if isinstance(value, Client):
            value.close()
    del sys.modules[module.__name__]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_python_of_a_document_runs(path, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    for block in blocks(path):
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # so that a traceback names the line
            exec(compile(code, str(path), "exec"), vars(module))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_commands_that_a_document_marks_succeed(path, tmp_path):
    scripts = Path(sys.executable).parent
    environment = os.environ | ENVIRONMENT | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(path):
        if block.language == "console" and block.marked:
            for line in block.code.splitlines():
                if line.startswith("$ "):
                    done = subprocess.run(
                        shlex.split(line[2:], comments=True),
                        cwd=tmp_path,
                        env=environment,
                        capture_output=True,
                        text=True,
                        timeout=120,
                    )
                    assert done.returncode == 0, f"{name(path)}: {line}\n{done.stderr}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_that_a_document_links_to_exists(path):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_the_translations_of_the_readme_show_the_same_code():
    shown = {
        name(path): [(block.language, block.code) for block in blocks(path)]
        for path in REPOSITORY.glob("README*.md")
    }
    assert all(code == shown["README.md"] for code in shown.values())
