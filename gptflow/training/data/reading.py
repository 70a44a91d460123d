"""Reading: the rows of a file, and what in it is no row. Nothing is dropped without a word."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from gptflow.errors import EmptyData, UnreadableFile
from gptflow.suggestion import did_you_mean
from gptflow.training.data.conll import read_conll
from gptflow.training.data.dialogues import from_turns
from gptflow.training.data.fields import TURNS, kind_of, to_row
from gptflow.training.data.lines import read_lines
from gptflow.training.data.problem import Problem, error_for
from gptflow.training.data.records import Record, from_csv, from_jsonl, from_parquet
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Origin,
    PlainText,
    Preference,
    Row,
    ScoredPair,
    TaggedText,
)
from gptflow.training.data.source import FORMATS, SUFFIXES, Format, Kind, Source

RowT = TypeVar("RowT", bound=Row)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading(Generic[RowT]):
    """What a file holds.

    Attributes:
        problems: lines that are no rows, in the file's order.
    """

    rows: tuple[RowT, ...]
    problems: tuple[Problem, ...]
    files: tuple[str, ...]

    def require(self) -> tuple[RowT, ...]:
        """The rows, if every line is one.

        Raises:
            BadRows: names the first lines that are none; a class of its own where all have one
                reason.
            EmptyData: there are no rows.
        """
        if self.problems:
            raise error_for(self.problems)
        if not self.rows:
            raise EmptyData(
                f"There are no rows in {' or '.join(self.files)}.",
                hint="Is it the right file? A CSV's first line only names the columns.",
            )
        return self.rows


def read(path: Path, kind: Kind, source: Source | None = None) -> Reading[Row]:
    """Read all rows of a file.

    Raises:
        UnreadableFile: it is not there, not in the format of its suffix, or damaged.
        MissingDependency: the format needs a package that is not installed.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    for found in _found(path, kind, source or Source()):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            rows.append(found)
    problems.sort(key=lambda problem: problem.origin.line)
    return Reading(tuple(rows), tuple(problems), (str(path),))


def read_many(paths: Iterable[Path], kind: Kind, source: Source | None = None) -> Reading[Row]:
    """The rows of several files, one after the other."""
    readings = [read(path, kind, source) for path in paths]
    return Reading(
        tuple(row for reading in readings for row in reading.rows),
        tuple(problem for reading in readings for problem in reading.problems),
        tuple(file for reading in readings for file in reading.files),
    )


def labelled(path: Path, source: Source | None = None) -> Reading[LabelledText]:
    """`read` of texts with labels, typed."""
    return _narrow(read(path, "labels", source), LabelledText)


def tagged(path: Path, source: Source | None = None) -> Reading[TaggedText]:
    """`read` of texts with spans, typed."""
    return _narrow(read(path, "tags", source), TaggedText)


def dialogues(path: Path, source: Source | None = None) -> Reading[Dialogue]:
    """`read` of conversations, typed."""
    return _narrow(read(path, "dialogues", source), Dialogue)


def scored(path: Path, source: Source | None = None) -> Reading[ScoredPair]:
    """`read` of scored pairs, typed."""
    return _narrow(read(path, "scores", source), ScoredPair)


def preferences(path: Path, source: Source | None = None) -> Reading[Preference]:
    """`read` of preferences, typed."""
    return _narrow(read(path, "preferences", source), Preference)


def _narrow(reading: Reading[Row], cls: type[RowT]) -> Reading[RowT]:
    rows = tuple(row for row in reading.rows if isinstance(row, cls))
    assert len(rows) == len(reading.rows)
    return Reading(rows, reading.problems, reading.files)


def format_of(path: Path, source: Source | None = None) -> Format:
    """By the suffix, under `.gz` where the name ends in it, unless the source says.

    Raises:
        UnreadableFile: the suffix is none that is known.
    """
    if source is not None and source.format is not None:
        return source.format
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        hint = did_you_mean(suffix, SUFFIXES) if suffix else None
        raise UnreadableFile(
            f"The name of {path} does not say what it is.",
            hint=hint or f"Add `--format`: one of {', '.join(FORMATS)}.",
        )
    return SUFFIXES[suffix]


def guess_kind(path: Path, source: Source | None = None) -> Kind:
    """What kind of rows a file holds, by its suffix and the fields of its first record.

    Raises:
        EmptyData: it has no records.
        UnreadableFile: it cannot be read, or its fields are those of no kind.
    """
    source = source or Source()
    if source.format is None and _is_plain_text(path):
        return "text"
    format = format_of(path, source)
    if format == "conll":
        return "tags"
    first = next((r for r in _records(path, format, source) if not isinstance(r, Problem)), None)
    if first is None:
        raise EmptyData(
            f"There are no rows in {path}.",
            hint="Is it the right file? A CSV's first line only names the columns.",
        )
    kind = kind_of(first[1], source)
    if kind is None:
        names = ", ".join(repr(name) for name in first[1])
        raise UnreadableFile(
            f"The fields of {path} do not say what it holds: {names}.",
            hint="Add `--kind` and, for instance, `--text FIELD --label FIELD`.",
        )
    return kind


def _found(path: Path, kind: Kind, source: Source) -> Iterator[Row | Problem]:
    if kind == "text" and source.format is None and _is_plain_text(path):
        return _paragraphs(path, source)
    format = format_of(path, source)
    if format == "conll":
        if kind != "tags":
            raise UnreadableFile(
                f"{path} is CoNLL, which holds tags and no {kind}.", hint="Add `--kind tags`."
            )
        return read_conll(path, source)
    records = _records(path, format, source)
    if kind == "dialogues" and format != "jsonl":
        # Only Parquet has a place for a list of turns in one row.
        first = next(records, None)
        whole = () if first is None else (first,)
        if not isinstance(first, tuple) or not any(name in first[1] for name in TURNS):
            return from_turns(itertools.chain(whole, records), source)
        records = itertools.chain(whole, records)
    return _rows(records, kind, source)


def _rows(
    records: Iterable[Record | Problem], kind: Kind, source: Source
) -> Iterator[Row | Problem]:
    for found in records:
        yield found if isinstance(found, Problem) else to_row(kind, *found, source)


def _records(path: Path, format: Format, source: Source) -> Iterator[Record | Problem]:
    if format == "parquet":
        return from_parquet(path)
    if format == "jsonl":
        return from_jsonl(path, encoding=source.encoding, max_line=source.max_line)
    return from_csv(
        path,
        delimiter=source.delimiter or ("\t" if format == "tsv" else ","),
        quotes=source.quotes,
        encoding=source.encoding,
        max_line=source.max_line,
    )


def _is_plain_text(path: Path) -> bool:
    return Path(path.name.removesuffix(".gz")).suffix.lower() in (".txt", ".md", ".text")


def _paragraphs(path: Path, source: Source) -> Iterator[PlainText | Problem]:
    """Text parted by blank lines."""
    first, lines = 0, list[str]()
    for number, line in read_lines(path, encoding=source.encoding, max_line=source.max_line):
        if isinstance(line, Problem):
            yield line
        elif line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield PlainText(origin=Origin(str(path), first), text="\n".join(lines))
            lines = []
    if lines:
        yield PlainText(origin=Origin(str(path), first), text="\n".join(lines))
