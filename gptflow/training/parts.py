"""Parts: a run's rows to train on, to choose by, and to test with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptflow.errors import EmptyData, ResumeRefused, UnreadableFile
from gptflow.training.data.duplicates import find_duplicates
from gptflow.training.data.reading import read
from gptflow.training.data.repeats import leave_out_repeats
from gptflow.training.data.rows import Preference, Row, ScoredPair
from gptflow.training.data.source import Kind, Source
from gptflow.training.data.splits import split
from gptflow.training.runs import DataFile, RunRecord


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Rows of one kind.

    Attributes:
        dev: none where the rows are too few to put some aside.
    """

    train: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any]


def data_file(
    path: Path, split: Any, kind: Kind, source: Source, *, name: str = "", licence: str = "unknown"
) -> DataFile:
    """A file for a run's record, as it is now.

    Raises:
        UnreadableFile: it is not there.
    """
    given = dataclasses.asdict(source)
    default = dataclasses.asdict(Source())
    return DataFile(
        path=str(path.resolve()),
        split=split,
        kind=kind,
        sha256=_sha256(path),
        source={key: value for key, value in given.items() if value != default[key]},
        name=name or path.name,
        licence=licence,
    )


def read_parts(record: RunRecord, *, note: Callable[[str], None], few: int = 0) -> Parts:
    """The rows of a run's files. Those to choose by are cut from those to train on, where no file
    is given for them.

    Args:
        few: of fewer training rows, none are put aside.

    Raises:
        DataError: the rows will not do.
        ResumeRefused: a file is not what it was when the run began.
    """
    settings = record.settings
    parts: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for file in record.data:
        path = Path(file.path)
        if _sha256(path) != file.sha256:
            raise ResumeRefused(
                f"{path} is not what it was when the run {record.id} began.",
                hint="Begin the training anew.",
            )
        kind: Any = file.kind
        parts[file.split] += read(path, kind, Source(**file.source)).require()
    train = [_grouped(row) for row in parts["train"]]
    if not settings.keep_repeats:
        distinct = leave_out_repeats(train, [*parts["dev"], *parts["test"]])
        if len(distinct.rows) < len(train):
            note(f"{distinct}")
        train = list(distinct.rows)
        if not train:
            raise EmptyData(
                "Every training row is among the rows to choose by or to test with.",
                hint="Give other rows, or `--keep-repeats`.",
            )
    if parts["dev"] or len(train) < few:
        return Parts(train, parts["dev"], parts["test"])
    method: Any = "grouped" if all(row.group for row in train) else "stratified"
    cut = split(
        train,
        method=method,
        dev=settings.dev,
        test=0,
        seed=settings.seed,
        duplicates=find_duplicates(train),
    )
    return Parts(cut.train, cut.dev, parts["test"])


def _grouped(row: Row) -> Row:
    """The candidates of one query, or the answers to one prompt, stay together."""
    if isinstance(row, ScoredPair) and row.group is None:
        return dataclasses.replace(row, group=row.query)
    if isinstance(row, Preference) and row.group is None:
        return dataclasses.replace(row, group=row.asked)
    return row


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}.") from None
