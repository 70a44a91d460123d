"""Rows: the lines of a JSONL file, the good and the bad, one at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A line that is not blank.

    Attributes:
        line: its number in the file, counting from 1.
        custom_id: its own name, or `line-7`; a bad row has the latter.
        error: what is wrong with it; None where nothing is.
    """

    line: int
    custom_id: str
    input: Any = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a file before its rows are read: how many, and which file it is."""

    rows: int
    sha256: str


def name_of(line: int) -> str:
    """What a row without an id of its own is called."""
    return f"line-{line}"


def survey(file: str) -> Survey | None:
    """Look through a file; None for what can be read only once, such as standard input."""
    if file == "-" or not Path(file).is_file():
        return None
    digest, rows, some = hashlib.sha256(), 0, False
    with Path(file).open("rb") as stream:
        while chunk := stream.readline(_CHUNK):
            digest.update(chunk)
            some = some or bool(chunk.strip())
            if chunk.endswith(b"\n"):
                rows, some = rows + some, False
    return Survey(rows + some, digest.hexdigest())


def read_rows(file: str, limit: int) -> Iterator[Row]:
    """The rows of a file, `-` for standard input. Blank lines are none.

    Args:
        limit: bytes of a line at most; what is longer is never in memory as a whole.
    """
    stream = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115
    with stream:
        number = 0
        while line := stream.readline(limit + 2):  # a line's end is no part of it
            number += 1
            size = len(line.rstrip(b"\r\n"))
            while not line.endswith(b"\n") and (more := stream.readline(_CHUNK)):
                size += len(more.rstrip(b"\r\n"))
                line = line[:1] + more[-1:]
            if size > limit:
                message = f"Line {number} has {size} bytes; {limit} are taken."
                yield Row(number, name_of(number), error=message)
            elif line.strip():
                yield _parse(line, number)


def _parse(line: bytes, number: int) -> Row:
    try:
        return _row(line, number)
    except ValueError as error:
        return Row(number, name_of(number), error=f"Line {number} {error}.")


def _row(line: bytes, number: int) -> Row:
    """Raises `ValueError` with the end of a sentence on what is wrong."""
    from gptflow.envelope import MAX_CUSTOM_ID
    from gptflow.open_batch import split_row

    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    custom_id, value = split_row(row, name_of(number))
    if value is None:
        raise ValueError("holds no input")
    if len(custom_id) > MAX_CUSTOM_ID:
        raise ValueError(f"has an id of over {MAX_CUSTOM_ID} characters")
    return Row(number, custom_id, value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
