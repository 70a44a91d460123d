"""Writing: rows as JSONL, CSV, Parquet or CoNLL, such that reading gives the same rows."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gptflow.errors import InvalidInput, MissingDependency
from gptflow.training.data.reading import format_of
from gptflow.training.data.rows import (
    LABEL,
    Dialogue,
    LabelledText,
    PlainText,
    Preference,
    Row,
    ScoredPair,
    TaggedText,
    Turn,
)
from gptflow.training.data.source import Format
from gptflow.training.data.tagging import Scheme, from_iob2


def write(
    path: Path, rows: Sequence[Row], *, format: Format | None = None, scheme: Scheme = "iob2"
) -> None:
    """Write rows to a file that appears whole or not at all.

    Args:
        format: by the file's suffix where it is None.
        scheme: of CoNLL tags.

    Raises:
        InvalidInput: the format cannot hold such rows.
        UnreadableFile: the suffix is none that is known.
        MissingDependency: Parquet without pyarrow.
        OSError: the file cannot be written, or the disk is full; nothing of it is left.
    """
    chosen = format or format_of(path)
    if chosen == "conll":
        strange = next((row for row in rows if not isinstance(row, TaggedText)), None)
        if strange is not None:
            raise InvalidInput("CoNLL holds tags only.", hint="Write JSONL or Parquet.")
        _write_text(path, conll_lines(rows, scheme))
    elif chosen == "jsonl":
        lines = (json.dumps(as_record(row), ensure_ascii=False) + "\n" for row in rows)
        _write_text(path, lines)
    elif chosen == "parquet":
        _write_parquet(path, [as_record(row) for row in rows])
    else:
        _write_text(path, _csv_lines(rows, "\t" if chosen == "tsv" else ","))


def as_record(row: Row) -> dict[str, Any]:
    """A row's fields under the names that reading looks for."""
    record: dict[str, Any] = {} if row.id is None else {"id": row.id}
    match row:
        case LabelledText():
            record |= {"text": row.text, **row.labels}
        case TaggedText():
            record |= {"text": row.text, "tokens": list(row.words), "tags": list(row.tags)}
        case Dialogue():
            record["turns"] = [{"role": turn.role, "content": turn.text} for turn in row.turns]
        case ScoredPair():
            record |= {"query": row.query, "candidate": row.candidate, "score": row.score}
        case Preference():
            if row.before:
                turns = (*row.before, Turn("user", row.prompt))
                record["messages"] = [{"role": t.role, "content": t.text} for t in turns]
            else:
                record["prompt"] = row.prompt
            record |= {} if row.input is None else {"input": dict(row.input)}
            record |= {"chosen": row.chosen, "rejected": row.rejected}
        case PlainText():
            record["text"] = row.text
    for name in ("group", "language"):
        if (value := getattr(row, name)) is not None:
            record[name] = value
    if row.time is not None:
        record["time"] = datetime.fromtimestamp(row.time, UTC).isoformat()
    return record


def conll_lines(rows: Iterable[Row], scheme: Scheme) -> Iterator[str]:
    """Token, tab, tag; the text in a comment where blanks between tokens do not give it."""
    for row in rows:
        assert isinstance(row, TaggedText)
        if row.id is not None and row.id == "".join(row.id.split()):
            yield f"# id = {row.id}\n"
        if "\n" not in row.text:
            yield f"# text = {row.text}\n"
        for word, tag in zip(row.words, from_iob2(row.tags, scheme), strict=True):
            yield f"{word}\t{tag}\n"
        yield "\n"


def _csv_lines(rows: Sequence[Row], delimiter: str) -> Iterator[str]:
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for record in flat for name in record))
    line = io.StringIO()
    writer = csv.DictWriter(line, names, restval="", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for record in flat:
        writer.writerow(record)
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    if not flat:
        yield line.getvalue()


def _flat(row: Row) -> Mapping[str, Any]:
    if isinstance(row, TaggedText | Dialogue):
        raise _no_place("tags" if isinstance(row, TaggedText) else "turns")
    if isinstance(row, Preference) and (row.before or row.input is not None):
        raise _no_place("turns" if row.before else "a task's input")
    return as_record(row)


def _no_place(name: str) -> InvalidInput:
    return InvalidInput(
        f"A CSV has no place for {name}.", hint="Write JSONL, Parquet or, for tags, CoNLL."
    )


def _write_text(path: Path, lines: Iterable[str]) -> None:
    def fill(name: str) -> None:
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)

    _write_whole(path, fill)


def _write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingDependency(
            "Parquet needs pyarrow.", hint="Type `pip install 'gptflow[train]'`."
        ) from None
    # A column is made of the names in the first row unless all rows have all of them.
    names = list(dict.fromkeys(name for record in records for name in record)) or [LABEL]
    table = pa.Table.from_pylist([{name: r.get(name) for name in names} for r in records])
    _write_whole(path, lambda name: parquet.write_table(table, name))


def _write_whole(path: Path, fill: Callable[[str], None]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        fill(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
