"""Scaffold: writes a plugin package, one per head, whose own tests pass at once."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import keyword
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptflow.errors import PluginError
from gptflow.plugins import GROUP
from gptflow.suggestion import did_you_mean

if TYPE_CHECKING:
    from jinja2 import Environment

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 32


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What a head's package is about: its task's verb, what it does, and an input to try."""

    verb: str
    summary: str
    sample: str


_KINDS: Mapping[str, _Kind] = {
    "choose": _Kind("choose", "Tell questions, complaints and praise apart.", "Where is my order?"),
    "generate": _Kind("write", "Write a short answer to a message.", "When do you open?"),
    "json": _Kind("extract", "Read an order out of a message.", "Two ladders, quickly."),
    "classify": _Kind("classify", "Tell the mood of a review.", "A waste of money."),
    "score": _Kind("rank", "Rank items by how well they fit a wish.", "@examples"),
    "tag": _Kind("tag", "Find the people and places in a text.", "The train to Oslo is late."),
    "embed": _Kind("embed", "Turn a text into a vector.", "The cat sat on the mat."),
}

HEADS: tuple[str, ...] = tuple(_KINDS)
"""The heads that a package can be written for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Created:
    """A package that was written.

    Attributes:
        folder: its root.
        files: every file, in the order in which one would read them.
        next_commands: what to type next, ready for a shell.
    """

    folder: Path
    files: tuple[Path, ...]
    next_commands: tuple[str, ...]


def new_plugin(name: str, *, head: str = "choose", into: Path | None = None) -> Created:
    """Write the package `gptflow-<name>`, with one task, into a folder of that name.

    Args:
        name: of the plugin, and the first half of its task's name.
        head: how its task answers; one of `HEADS`.
        into: where the folder goes; by default the working directory.

    Raises:
        PluginError: the name or the head will not do, or something is in the way.
    """
    _check_name(name)
    kind = _kind(head)
    distribution = f"gptflow-{name.replace('_', '-')}"
    folder = (into or Path()) / distribution
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PluginError(
            f"{folder} exists and is not an empty folder.",
            hint="Move it away, or choose another name.",
        )
    files = dict(_files(name, head, kind, distribution))
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PluginError(f"{error.filename} cannot be written: {error.strerror}.") from None
    quoted = shlex.quote(str(folder))
    return Created(
        folder=folder,
        files=tuple(folder / path for path in files),
        next_commands=(
            f"pip install -e {quoted}",
            f"pytest {quoted}",
            f"gptflow run {name}.{kind.verb} {shlex.quote(kind.sample)}",
        ),
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        plain = "_".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("_0123456789")[:_LONGEST]
        close = plain.rstrip("_")
        raise PluginError(
            f"A plugin cannot be called {name!r}: a name has small letters, digits and single "
            f"underscores, starts with a letter and has {_LONGEST} characters at most.",
            hint=f"Did you mean {close!r}?" if close else None,
        )
    if keyword.iskeyword(name):
        raise PluginError(
            f"A plugin cannot be called {name!r}, which is a word of Python.",
            hint=f"Did you mean '{name}_plugin'?",
        )
    for entry_point in importlib.metadata.entry_points(group=GROUP, name=name):
        raise PluginError(
            f"A plugin {name!r} is installed already ({entry_point.value}).",
            hint="Choose another name.",
        )


def _kind(head: str) -> _Kind:
    if (kind := _KINDS.get(head)) is not None:
        return kind
    raise PluginError(
        f"There is no head {head!r} to start from.",
        hint=did_you_mean(head, HEADS) or f"Use one of {', '.join(HEADS)}.",
    )


def _files(name: str, head: str, kind: _Kind, distribution: str) -> Iterator[tuple[str, str]]:
    package = f"gptflow_{name}"
    title = "".join(word.capitalize() for word in name.split("_"))
    words = {
        "name": name,
        "distribution": distribution,
        "package": package,
        "task": f"{name}.{kind.verb}",
        "task_class": kind.verb.capitalize() + title,
        "verb": kind.verb,
        "summary": kind.summary,
        "sample": shlex.quote(kind.sample),
    }
    behaviour = _render(f"{head}/test.py.j2", words)
    yield "pyproject.toml", _render("pyproject.toml.j2", words)
    yield "README.md", _render("README.md.j2", words)
    yield f"{package}/__init__.py", _render(f"{head}/task.py.j2", words)
    yield f"{package}/prompts/{kind.verb}.j2", _source(f"{head}/prompt.j2")
    yield f"{package}/examples.jsonl", _source(f"{head}/examples.jsonl")
    yield f"{package}/py.typed", ""
    yield f"tests/test_{name}.py", _render("tests.py.j2", words | {"behaviour": behaviour})


def _source(path: str) -> str:
    template = importlib.resources.files("gptflow") / "templates" / "plugin" / path
    return template.read_text(encoding="utf-8")


def _render(path: str, words: Mapping[str, str]) -> str:
    return _environment().from_string(_source(path)).render(words)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    # `{{ }}` and `{% %}` belong to the prompts that the templates write.
    return Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  the output is source code, not HTML
    )
