"""Reservoir: some of the rows that were trained on, kept for the run that goes on from there.

It is balanced over classes and depends on nothing but the rows: each row has a number that is drawn
from its content, and of each class those with the smallest numbers are kept (bottom-k sampling).
So a sample of samples is the sample of the whole, in whatever order and stages the rows came; it is
class-balanced reservoir sampling (Chrysakis and Moens 2020, "Online Continual Learning from
Imbalanced Data") for rows that are all at hand.

The rows are users' data. They stay in the run's folder, readable to its owner alone, and are no
part of an adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gptflow.errors import TrainingError, UnreadableFile
from gptflow.training.data.fields import to_row
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
from gptflow.training.data.source import Kind, Source
from gptflow.training.data.writing import as_record

FILE = "reservoir.jsonl"

ROWS = 1000
"""Training rows to keep where the settings do not say, or as many of each class as there are below,
whichever is more."""

OF_A_CLASS = 50
"""A head that is fitted to fewer rows of a label tells it apart less well. With the 150 intents of
CLINC150, learnt in ten stages, it had 88.2 % of the test rows right with 10 old rows of an intent,
90.8 % with 20, and 92.5 % with 50."""

Part = Literal["train", "dev"]

_KINDS: Mapping[type[Row], Kind] = {
    LabelledText: "labels",
    TaggedText: "tags",
    Dialogue: "dialogues",
    ScoredPair: "scores",
    Preference: "preferences",
    PlainText: "text",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A row of the reservoir.

    Attributes:
        part: what it was used as. What decided on the best weights is never trained on.
        stage: the run that it came with.
    """

    row: Row
    part: Part
    stage: str


def sample(rows: Iterable[Kept], size: int | None = None) -> list[Kept]:
    """The training rows to keep, and a quarter as many development rows.

    Rows that say the same are kept once. The candidates of one query are kept together or not at
    all.

    Args:
        size: most training rows; somewhat more where the last query has several. By default as
            `ROWS` and `OF_A_CLASS` have it.
    """
    parts: dict[Part, list[Kept]] = {"train": [], "dev": []}
    for row in rows:
        parts[row.part].append(row)
    if size is None:
        size = max(ROWS, OF_A_CLASS * len({_class(kept.row) for kept in parts["train"]}))
    return _balanced(parts["train"], size) + _balanced(parts["dev"], size // 4)


def save(folder: Path, rows: Sequence[Kept], name: str = FILE) -> None:
    """Write rows into a run's folder, whole or not at all.

    Raises:
        TrainingError: the disk is full.
    """
    lines = (json.dumps(_as_line(row)) + "\n" for row in rows)
    partial = ""
    try:
        handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}.")  # for its owner alone
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / name)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise TrainingError(
            f"{folder / name} cannot be written: {error.strerror}.",
            hint="Make room, then go on with the run; `--keep 0` keeps no rows.",
        ) from None


def load(folder: Path, name: str = FILE) -> list[Kept] | None:
    """What `save` wrote; None where there is nothing.

    Raises:
        UnreadableFile: it is damaged.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        lines = path.read_bytes().splitlines()
        return [_from_line(json.loads(line), path, number) for number, line in enumerate(lines, 1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(
            f"{path} is damaged: {type(error).__name__}.",
            hint="Go on without its rows: `--replay 0`.",
        ) from None


def _balanced(rows: Sequence[Kept], size: int) -> list[Kept]:
    units: dict[str, list[Kept]] = {}
    for row in rows:
        found = units.setdefault(_unit(row.row), [])
        if all(_same(row.row) != _same(other.row) for other in found):
            found.append(row)
    classes: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in sorted(units, key=_number):
        classes[_class(units[key][0].row)].append(key)
    quota = _quotas(classes, {key: len(unit) for key, unit in units.items()}, size)
    return [
        row
        for each in sorted(classes)
        for key in classes[each][: quota[each]]
        for row in units[key]
    ]


def _quotas(
    classes: Mapping[tuple[str, ...], Sequence[str]], rows: Mapping[str, int], size: int
) -> Counter[tuple[str, ...]]:
    """How many units of each class to keep: one of each at a time, until the rows are enough.

    What does not go round evenly goes to the classes whose next unit has the smallest number.
    """
    quota: Counter[tuple[str, ...]] = Counter()
    kept, level = 0, 0
    while kept < size and (left := [each for each, keys in classes.items() if len(keys) > level]):
        for each in sorted(left, key=lambda each: _number(classes[each][level])):
            if kept >= size:
                break
            kept += rows[classes[each][level]]
            quota[each] += 1
        level += 1
    return quota


def _unit(row: Row) -> str:
    """What is kept together: the candidates of a query, or a row with what is known of it."""
    return f"query {row.query}" if isinstance(row, ScoredPair) else _same(row)


def _same(row: Row) -> str:
    return json.dumps([row.content, *row.classes], ensure_ascii=False)


def _class(row: Row) -> tuple[str, ...]:
    return () if isinstance(row, ScoredPair) else row.classes


def _number(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _as_line(kept: Kept) -> dict[str, Any]:
    row = kept.row
    record: dict[str, Any]
    if isinstance(row, LabelledText):  # a head may be called as a field is
        record = {"text": row.text, "labels": dict(row.labels)}
        record |= {n: v for n in _COMMON if (v := getattr(row, n)) is not None}
    else:
        record = as_record(row)
    return {"kind": _KINDS[type(row)], "part": kept.part, "stage": kept.stage, "row": record}


_COMMON = ("id", "group", "time", "language")


def _from_line(line: dict[str, Any], path: Path, number: int) -> Kept:
    origin, record = Origin(str(path), number), line["row"]
    row: Any
    if line["kind"] == "labels":
        row = LabelledText(origin=origin, **record)
    else:
        source = Source(scheme="iob2") if line["kind"] == "tags" else Source()
        row = to_row(line["kind"], origin, record, source)
    if not isinstance(row, Row) or line["part"] not in ("train", "dev"):
        raise ValueError("not a row")
    return Kept(row, line["part"], str(line["stage"]))
