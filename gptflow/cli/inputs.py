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
        return _text_or_object(sys.stdin.buffer.read(), "Standard input")
    if given == "@examples":
        from gptflow.testing import examples

        rows = examples(plugins().task(task))
        if not rows:
            raise InvalidInput(f"Task {task!r} comes with no examples.")
        return rows[0]["input"]
    if given.startswith("@"):
        path = Path(given[1:])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be read: {error.strerror}.",
                hint=f"Give text that begins with @ on standard input: `gptflow run {task} -`.",
            ) from None
        return _parse(_decode(content, str(path)), f"{path} is not JSON")
    # Bytes of the command line that are not UTF-8 come as lone surrogates.
    return _text_or_object(given.encode(errors="surrogateescape"), "The argument")


def _text_or_object(content: bytes, where: str) -> Any:
    text = _decode(content, where)
    # Text may begin with a brace without meaning JSON, as code does; an object has a name next.
    if not re.match(r'\s*\{\s*("|\}\s*$)', text):
        return text
    return _parse(text, f"{where} looks like JSON but is not")


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise InvalidInput(
            f"{where} is not UTF-8: its byte {error.start + 1} is 0x{byte:02x}.",
            hint="Convert it first, as with `iconv -t UTF-8`.",
        ) from None


def _parse(text: str, complaint: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{complaint}: {error}.") from None
