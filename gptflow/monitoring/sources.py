"""Sources: feeds of posts, row by row. A row that cannot be used is reported, never dropped.

A reader takes a location and yields mappings. Beside the row's fields it may say which `line`
it is from; where a line is no row at all, it yields `{"line": ..., "error": ...}`. Plugins add
readers with the hook `register_sources`.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gptflow.cleaning import clean
from gptflow.errors import InvalidInput

Reader = Callable[[str], Iterable[Mapping[str, Any]]]

LATEST = 253_402_300_799.0
"""The last second of the year 9999."""

MILLISECONDS = 1e11
"""Unix times above this are in milliseconds: as seconds it is in the year 5138."""

LONGEST_LINE = 1 << 20
"""Bytes in a line, its end included; a longer one is a bad row."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(?!\\)")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One row of a feed. `ts` is when it was published, in Unix seconds."""

    id: str
    text: str
    ts: float
    source: str | None = None
    lang: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    reason: str


class _TooLong(csv.Error):
    """A line over the limit; a `csv.Error` because it comes up through `csv.reader`."""

    def __init__(self) -> None:
        super().__init__(f"longer than {LONGEST_LINE} bytes")


class _Lines:
    """The lines of a file, none of them held in full if it is too long.

    After `_TooLong` it goes on with the next line. Bytes that are not UTF-8 become surrogates.

    Attributes:
        number: of the last line, from 1.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(LONGEST_LINE)
            raise _TooLong
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(errors="surrogateescape")


def read_jsonl(location: str) -> Iterator[Mapping[str, Any]]:
    """One JSON object a line, UTF-8 with or without a byte-order mark; blank lines are skipped."""
    with Path(location).open("rb") as file:
        lines = _Lines(file)
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except _TooLong as error:
                yield {"line": lines.number, "error": str(error)}
                continue
            if line.strip():
                yield {**_parse_json(line), "line": lines.number}


def _parse_json(line: str) -> Mapping[str, Any]:
    if _SURROGATE.search(line):
        return {"error": "not UTF-8"}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "not JSON"}
    return row if isinstance(row, dict) else {"error": "not a JSON object"}


def read_csv(location: str) -> Iterator[Mapping[str, Any]]:
    """Comma-separated with a header, UTF-8 with or without a byte-order mark.

    Raises:
        InvalidInput: the header cannot be read, or lacks `text` or `ts`.
    """
    path = Path(location)
    with path.open("rb") as file:
        lines = _Lines(file)
        rows = csv.DictReader(lines, strict=True)
        try:
            header = set(rows.fieldnames or ())
        except csv.Error as error:
            raise InvalidInput(f"The header of feed {path.name} is not CSV: {error}.") from None
        if missing := {"text", "ts"} - header:
            raise InvalidInput(
                f"Feed {path.name} has no column {min(missing)!r}.",
                hint="Its first line must name the columns: id,text,ts,source.",
            )
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield {"line": lines.number, "error": f"not CSV: {error}"}
                continue
            if None in row:
                yield {"line": lines.number, "error": "more fields than the header has"}
            elif any(_SURROGATE.search(value) for value in row.values() if value):
                yield {"line": lines.number, "error": "not UTF-8"}
            else:
                filled = {name: value for name, value in row.items() if value}
                yield {**filled, "line": lines.number}


BUILT_IN: Mapping[str, Reader] = {"jsonl": read_jsonl, "csv": read_csv}


def rows(
    location: str, *, readers: Mapping[str, Reader], roots: Sequence[Path]
) -> Iterable[Mapping[str, Any]]:
    """Open a feed: a file by its suffix, `jsonl:file` or `csv:file`, or `scheme:rest` of a plugin.

    Args:
        readers: of plugins, by scheme; they add to those built in. What follows the scheme is
            theirs to check.
        roots: the folders that files may be in, once symbolic links are followed.

    Raises:
        InvalidInput: no reader fits, or the file is not there or not in a permitted folder.
    """
    known = {**BUILT_IN, **readers}
    kind, rest = split(location)
    if kind is not None and kind not in BUILT_IN:
        return _reader(known, kind)(rest)
    return _reader(known, kind or Path(rest).suffix.removeprefix("."))(str(_locate(rest, roots)))


def split(location: str) -> tuple[str | None, str]:
    """The scheme of a location, None for a plain file, and the rest."""
    scheme = _SCHEME.match(location)
    return (None, location) if scheme is None else (scheme[1], location[scheme.end() :])


def _reader(known: Mapping[str, Reader], scheme: str) -> Reader:
    if scheme not in known:
        raise InvalidInput(
            f"No plugin reads feeds {f'of kind {scheme!r}' if scheme else 'without an ending'}.",
            hint=f"Known: {', '.join(sorted(known))}.",
        )
    return known[scheme]


def _locate(location: str, roots: Sequence[Path]) -> Path:
    for root in roots:
        path = (root / location).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    raise InvalidInput(
        f"Feed {location!r} is not in a folder that monitors may read.",
        hint="Declare it in monitors.toml, or put it into the folder `feeds` of the data folder.",
    )


def posts(rows: Iterable[Mapping[str, Any]]) -> Iterator[Post | BadRow]:
    """Check rows: `text` and `ts` are needed; `id`, `source` and `lang` are used if there.

    A row without an id is known by its time and text. Other fields are left alone.
    """
    for number, row in enumerate(rows, start=1):
        line = row["line"] if isinstance(row.get("line"), int) else number
        if "error" in row and "text" not in row:
            yield BadRow(line, str(row["error"]))
            continue
        try:
            yield _post(row)
        except ValueError as error:
            yield BadRow(line, str(error))


def _post(row: Mapping[str, Any]) -> Post:
    text = row.get("text")
    if not isinstance(text, str) or not clean(text).strip():
        raise ValueError("text is missing or blank")
    if "ts" not in row:
        raise ValueError("ts is missing")
    text, ts = clean(text), parse_time(row["ts"])
    given = row.get("id")
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise ValueError("id is neither text nor a whole number")
    id = clean(str(given)).strip()[:256] if given not in (None, "") else ""
    return Post(
        id=id or hashlib.sha256(f"{ts!r}\n{text}".encode()).hexdigest()[:24],
        text=text,
        ts=ts,
        source=_optional(row, "source", 200),
        lang=_optional(row, "lang", 20),
    )


def _optional(row: Mapping[str, Any], name: str, longest: int) -> str | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return clean(value)[:longest]


def parse_time(value: object) -> float:
    """Unix seconds (or milliseconds), or ISO 8601; a time without a zone is UTC.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _parse_iso(str(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("ts is neither a Unix time nor ISO 8601")
    seconds = value / 1000 if MILLISECONDS < value <= LATEST * 1000 else value
    if not 0 <= seconds <= LATEST:
        raise ValueError("ts is not between 1970 and 9999")
    return float(seconds)


def _parse_iso(text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("ts is neither a Unix time nor ISO 8601") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return parse_time(moment.timestamp())
