"""How a task's input is given on the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptflow.errors import InvalidInput

if TYPE_CHECKING:
    from gptflow.plugins import Registry


def read_input(task: str, given: str | None, plugins: Callable[[], Registry]) -> Any:
    """Read `TEXT`, `-` for standard input, `@FILE.json`, or `@examples` for the task's first.

    Text that is a JSON object is taken as the input itself.

    Args:
        plugins: loads them; only `@examples` needs any.

    Raises:
        InvalidInput: there is no such file, or it is not JSON.
        TaskNotFound: `@examples` of a task that is not installed here.
    """
    if given is None or given == "-":
        if given is None and sys.stdin.isatty():
            raise InvalidInput(
                f"Task {task!r} was given no input.",
                hint=f'Type `gptflow run {task} "..."`, or `@examples` for a sample.',
            )
        return _text_or_object(sys.stdin.read(), "standard input")
    if given == "@examples":
        from gptflow.testing import examples

        rows = examples(plugins().task(task))
        if not rows:
            raise InvalidInput(f"Task {task!r} comes with no examples.")
        return rows[0]["input"]
    if given.startswith("@"):
        path = Path(given[1:])
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is not JSON: {error}.") from None
    return _text_or_object(given, "the argument")


def _text_or_object(text: str, where: str) -> Any:
    # Text may begin with a brace without meaning JSON, as code does; an object has a name next.
    if not re.match(r'\s*\{\s*("|\}\s*$)', text):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where.capitalize()} looks like JSON but is not: {error}.") from None
