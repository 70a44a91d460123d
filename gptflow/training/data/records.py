"""Records: the named fields of each row of a JSONL, CSV, TSV or Parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from gptflow.errors import MissingDependency, UnreadableFile
from gptflow.training.data.lines import MAX_LINE, read_lines
from gptflow.training.data.problem import Problem
from gptflow.training.data.rows import Origin

Record = tuple[Origin, Mapping[str, Any]]


def from_jsonl(
    path: Path, *, encoding: str = "utf-8", max_line: int = MAX_LINE
) -> Iterator[Record | Problem]:
    """One object a line; blank lines are passed over."""
    for number, line in read_lines(path, encoding=encoding, max_line=max_line):
        if isinstance(line, Problem):
            yield line
        elif line.strip():
            origin = Origin(str(path), number)
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                message = "nested too deep, or a number too long"
                if isinstance(error, json.JSONDecodeError):
                    message = error.msg
                yield Problem(origin, "format", f"the line is not JSON: {message}")
                continue
            if isinstance(value, dict):
                yield origin, value
            else:
                yield Problem(origin, "format", "the line is JSON, but not an object")


def from_csv(
    path: Path,
    *,
    delimiter: str = ",",
    quotes: bool = True,
    encoding: str = "utf-8",
    max_line: int = MAX_LINE,
) -> Iterator[Record | Problem]:
    """Rows below a line of names; a quoted field may go over several lines (RFC 4180).

    Args:
        quotes: whether `"` encloses fields; where it does not, it is a character like others.

    Raises:
        UnreadableFile: the first line does not name the columns.
    """
    bad: list[Problem] = []
    last = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for number, line in read_lines(path, encoding=encoding, max_line=max_line):
            last = number
            if isinstance(line, Problem):
                bad.append(line)
            else:
                yield line + "\n"

    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str] | None = None
    while True:
        first = last + 1
        try:
            fields = next(reader)
        except StopIteration:
            yield from bad
            return
        except csv.Error as error:
            yield from bad
            bad.clear()
            yield Problem(Origin(str(path), first), "format", _csv_complaint(str(error)))
            continue
        # Lines that could not be read came before the record, or were a part of it.
        first += sum(problem.origin.line == first + place for place, problem in enumerate(bad))
        torn = any(problem.origin.line > first for problem in bad)
        yield from bad
        bad.clear()
        origin = Origin(str(path), first)
        if torn:
            yield Problem(origin, "format", "a line inside this row cannot be read")
        elif not fields:  # a blank line
            continue
        elif names is None:
            names = _names(path, fields, delimiter)
        elif len(fields) != len(names):
            message = f"the row has {len(fields)} fields, and the first line names {len(names)}"
            yield Problem(origin, "format", message)
        else:
            yield origin, dict(zip(names, fields, strict=True))


def from_parquet(path: Path) -> Iterator[Record | Problem]:
    """Rows by their number from 1.

    Raises:
        MissingDependency: pyarrow is not installed.
        UnreadableFile: it cannot be opened, or is damaged.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingDependency(
            "Parquet needs pyarrow.", hint="Type `pip install 'gptflow[train]'`."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield Origin(str(path), number), record
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UnreadableFile(
            f"{path} cannot be read as Parquet: {reason}.", hint="Get the file again."
        ) from None


def _names(path: Path, fields: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in fields]
    other = next((mark for mark in "\t;,|" if mark != delimiter and mark in fields[0]), None)
    if len(names) == 1 and other is not None:
        shown = {"\t": "'\\t'"}.get(other, f"'{other}'")
        raise UnreadableFile(
            f"The first line of {path} is one field.", hint=f"Try `--delimiter {shown}`."
        )
    if "" in names or len(set(names)) < len(names):
        raise UnreadableFile(
            f"The first line of {path} must give each column a name of its own.",
            hint="Write the names above the rows.",
        )
    return names


def _csv_complaint(error: str) -> str:
    if "unexpected end" in error:
        return "a quote that is opened in this row is never closed"
    if "field limit" in error:
        return "a field is too long: is a quote that is opened in this row never closed?"
    if "expected after" in error:
        return "a quote inside a quoted field is not doubled"
    return f"the row is not CSV: {error}"
