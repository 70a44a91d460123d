"""What `gptflow plugins new` writes works at once, for every head."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptflow.errors import PluginError
from gptflow.scaffold import HEADS, new_plugin

REPOSITORY = Path(__file__).parents[2]
LONGEST = "a_name_as_long_as_names_may_ever"


def python(*arguments, cwd, **environment):
    """Run a tool of this interpreter's; its output, once it has succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """One new package per head."""
    folder = tmp_path_factory.mktemp("packages")
    return [new_plugin(f"fresh_{head}", head=head, into=folder) for head in HEADS]


@pytest.fixture(scope="module")
def site(packages, tmp_path_factory):
    """A folder into which pip has installed them all."""
    site = tmp_path_factory.mktemp("site")
    options = "--quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check"
    folders = [package.folder for package in packages]
    python("pip", "install", *options.split(), "--target", site, *folders, cwd=site)
    return site


def test_the_tests_of_every_new_package_pass_at_once(packages, site):
    folders = [package.folder for package in packages]
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", folders[0].parent, "-W", "error"]
    output = python("pytest", *options, *folders, cwd=site, PYTHONPATH=str(site))
    contract = 8
    assert f"{len(HEADS) * (contract + 1)} passed" in output


def test_every_new_package_is_found_and_passes_its_check(packages, site):
    code = """
from gptflow.checking import check_plugin
from gptflow.plugins import Registry
names = [f"fresh_{head}" for head in "HEADS".split()]
registry = Registry.load(names)
registry.require_all()
assert [finding for name in names for finding in check_plugin(registry, name)] == []
print(*registry.tasks)
"""
    command = [sys.executable, "-c", code.replace("HEADS", " ".join(HEADS))]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [package.next_commands[2].split()[2] for package in packages]


def test_new_packages_are_clean_by_ruff_and_mypy(packages):
    folder = packages[0].folder.parent
    config = packages[0].folder / "pyproject.toml"
    python("ruff", "check", "--no-cache", ".", cwd=folder)
    python("ruff", "format", "--no-cache", "--check", ".", cwd=folder)
    cache = REPOSITORY / ".mypy_cache" / "new-packages"
    sources = [path for package in packages for path in package.files if path.suffix == ".py"]
    python("mypy", "--config-file", config, "--cache-dir", cache, *sources, cwd=folder)


@pytest.mark.parametrize("name", ["x", LONGEST])
def test_the_code_is_well_formatted_whatever_the_name(name, tmp_path):
    for head in HEADS:
        new_plugin(name, head=head, into=tmp_path / head)
    python("ruff", "check", "--no-cache", ".", cwd=tmp_path)
    python("ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)


def test_a_package_is_what_it_says(packages):
    created = packages[0]
    assert [path.relative_to(created.folder).as_posix() for path in created.files] == [
        "pyproject.toml",
        "README.md",
        "gptflow_fresh_choose/__init__.py",
        "gptflow_fresh_choose/prompts/choose.j2",
        "gptflow_fresh_choose/examples.jsonl",
        "gptflow_fresh_choose/py.typed",
        "tests/test_fresh_choose.py",
    ]
    assert all(path.is_file() for path in created.files)
    assert created.next_commands == (
        f"pip install -e {created.folder}",
        f"pytest {created.folder}",
        "gptflow run fresh_choose.choose 'Where is my order?'",
    )


def test_an_empty_folder_may_be_there_already(tmp_path):
    (tmp_path / "gptflow-mine").mkdir()
    assert new_plugin("mine", into=tmp_path).folder == tmp_path / "gptflow-mine"


def test_nothing_is_ever_overwritten(tmp_path):
    created = new_plugin("mine", into=tmp_path)
    (created.folder / "README.md").write_text("my own words")
    with pytest.raises(PluginError, match="is not an empty folder"):
        new_plugin("mine", into=tmp_path)
    assert (created.folder / "README.md").read_text() == "my own words"
    (tmp_path / "gptflow-yours").write_text("a file")
    with pytest.raises(PluginError, match="is not an empty folder"):
        new_plugin("yours", into=tmp_path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match="cannot be written"):
        new_plugin("mine", into=tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My-Plugin", "Did you mean 'my_plugin'?"),
        ("2fast", "Did you mean 'fast'?"),
        ("a__b", "Did you mean 'a_b'?"),
        ("ends_", "Did you mean 'ends'?"),
        ("../escape", "Did you mean 'escape'?"),
        ("x" * 33, f"Did you mean '{'x' * 32}'?"),
        ("名前", None),
        ("", None),
        ("class", "Did you mean 'class_plugin'?"),
        ("text", "Choose another name."),
    ],
)
def test_a_name_that_will_not_do_is_answered_with_one_that_might(name, hint, tmp_path):
    with pytest.raises(PluginError) as caught:
        new_plugin(name, into=tmp_path)
    assert caught.value.hint == hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "hint"), [("chose", "Did you mean 'choose'?"), ("zzz", "Use one of choose, ")]
)
def test_an_unknown_head_is_answered_with_the_nearest(head, hint, tmp_path):
    with pytest.raises(PluginError, match="no head") as caught:
        new_plugin("mine", head=head, into=tmp_path)
    assert caught.value.hint.startswith(hint)
