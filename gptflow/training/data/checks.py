"""Checks: whether rows will do to train and to test with, and what to know before one does."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from gptflow.errors import DataError, ErrorInfo
from gptflow.result import from_info
from gptflow.training.data import personal_data
from gptflow.training.data.duplicates import (
    NEAR,
    Duplicate,
    find_duplicates,
    find_leaks,
    normalise,
)
from gptflow.training.data.problem import Problem, error_for
from gptflow.training.data.reading import Reading
from gptflow.training.data.requirements import leaked, require_classes, require_seen, require_types
from gptflow.training.data.rows import LabelledText, Origin, Preference, Row, TaggedText

FEW = 5
"""Rows of a label below which it is hardly learnt."""

_TOLD = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Remark:
    """Something about the data as a whole, or about one row.

    Attributes:
        severity: an error keeps the data from being trained on; a warning is to be known.
        code: of the error that training would raise; empty for a warning.
    """

    severity: Literal["error", "warning"]
    message: str
    origin: Origin | None = None
    code: str = ""
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "file": self.origin.file if self.origin else None,
            "line": self.origin.line if self.origin else None,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a check finds.

    Attributes:
        duplicates: places in the training rows.
        leaks: `first` is a place in the training rows, `second` one in the test rows.
        personal: how many of each kind of personal data, and the rows that hold any.
    """

    train: Sequence[Row]
    test: Sequence[Row]
    problems: Sequence[Problem]
    duplicates: Sequence[Duplicate]
    leaks: Sequence[Duplicate]
    personal: Mapping[str, int]
    personal_rows: Sequence[Origin]
    remarks: Sequence[Remark]

    @property
    def ok(self) -> bool:
        """Whether the data can be trained on and tested with."""
        return not self.problems and all(r.severity != "error" for r in self.remarks)

    def as_dict(self) -> dict[str, Any]:
        """Everything, without the texts of the rows."""
        return {
            "ok": self.ok,
            "rows": {"train": len(self.train), "test": len(self.test)},
            "problems": [problem.as_dict() for problem in self.problems],
            "duplicates": [_pair(pair, self.train, self.train) for pair in self.duplicates],
            "leaks": [_pair(pair, self.train, self.test) for pair in self.leaks],
            "personal_data": {
                "counts": dict(self.personal),
                "rows": [{"file": o.file, "line": o.line} for o in self.personal_rows],
            },
            "remarks": [remark.as_dict() for remark in self.remarks],
        }


def check(train: Reading[Row], test: Reading[Row] | None = None, *, near: float = NEAR) -> Findings:
    """Look for everything that is wrong; nothing is raised and nothing is mended.

    Args:
        near: least similarity of near duplicates.
    """
    tested = test.rows if test else ()
    problems = (*train.problems, *(test.problems if test else ()))
    duplicates = find_duplicates(train.rows, near=near)
    leaks = find_leaks(train.rows, tested, near=near) if tested else []
    personal, rows = _personal([*train.rows, *tested])
    remarks = [
        *_errors(train, test),
        *_leak_errors(leaks, train.rows, tested),
        *_contradictions(train.rows),
        *_reversed(train.rows),
        *_rare(train.rows),
    ]
    return Findings(
        train=train.rows,
        test=tested,
        problems=problems,
        duplicates=duplicates,
        leaks=leaks,
        personal=personal,
        personal_rows=rows,
        remarks=remarks,
    )


def _errors(train: Reading[Row], test: Reading[Row] | None) -> Iterator[Remark]:
    """What training or testing would refuse the data for, lines that are no rows apart."""
    for reading in (train, test):
        if reading is not None and not reading.rows:
            yield _remark(Reading((), (), reading.files).require)
    labelled = [row for row in train.rows if isinstance(row, LabelledText)]
    tested = [row for row in (test.rows if test else ()) if isinstance(row, LabelledText)]
    for head in sorted({head for row in labelled for head in row.labels}):
        yield from _tried(lambda head=head: require_classes(labelled, head))
        yield from _tried(lambda head=head: require_seen(labelled, tested, head))
    tagged = [row for row in train.rows if isinstance(row, TaggedText)]
    if tagged:
        yield from _tried(lambda: require_types(tagged))


def _tried(action: Any) -> Iterator[Remark]:
    try:
        action()
    except DataError as error:
        yield Remark("error", error.message, code=error.code, hint=error.hint)


def _remark(action: Any) -> Remark:
    return next(_tried(action))


def _leak_errors(
    leaks: Sequence[Duplicate], train: Sequence[Row], test: Sequence[Row]
) -> Iterator[Remark]:
    exact = [leak for leak in leaks if leak.kind == "exact"]
    near = [leak for leak in leaks if leak.kind == "near"]
    if exact:
        error = leaked(exact, train, test)
        where = test[exact[0].second].origin
        yield Remark("error", error.message, where, error.code, error.hint)
    if near:
        first = near[0]
        count = "1 test row is" if len(near) == 1 else f"{len(near)} test rows are"
        yield Remark(
            "warning",
            f"{count} much like a training row; the first: {test[first.second].origin} and "
            f"{train[first.first].origin}, {first.similarity:.0%} alike.",
            test[first.second].origin,
        )


def _contradictions(rows: Sequence[Row]) -> Iterator[Remark]:
    """Rows with the same text and another label: one of the two is wrong."""
    seen: defaultdict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if isinstance(row, LabelledText):
            for head, label in row.labels.items():
                labels = seen[head, normalise(row.text)]
                labels.setdefault(label, row)
                if len(labels) == 2 and labels[label] is row:
                    other, first = next(iter(labels.items()))
                    yield Remark(
                        "warning",
                        f"{label!r} for {head!r} here and {other!r} in {first.origin}, "
                        "for the same text.",
                        row.origin,
                    )


def _reversed(rows: Sequence[Row]) -> Iterator[Remark]:
    """Preferences that another row turns round: one of the two is wrong."""
    seen: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if isinstance(row, Preference):
            asked, chosen, rejected = map(normalise, (row.asked, row.chosen, row.rejected))
            if (other := seen.get((asked, rejected, chosen))) is not None:
                yield Remark(
                    "warning", f"{other.origin} prefers the answer rejected here.", row.origin
                )
            seen.setdefault((asked, chosen, rejected), row)


def _rare(rows: Sequence[Row]) -> Iterator[Remark]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if isinstance(row, LabelledText):
            for head, label in row.labels.items():
                counts[head][label] += 1
    for head, labels in sorted(counts.items()):
        rare = sorted(label for label, count in labels.items() if count < FEW)
        if rare:
            names = ", ".join(repr(label) for label in rare[:_TOLD])
            more = f" and {len(rare) - _TOLD} more" if len(rare) > _TOLD else ""
            yield Remark("warning", f"Fewer than {FEW} rows of {names}{more} for {head!r}.")


def _personal(rows: Sequence[Row]) -> tuple[Mapping[str, int], list[Origin]]:
    total: Counter[str] = Counter()
    where: list[Origin] = []
    for row in rows:
        if found := personal_data.count(row.content):
            total.update(found)
            where.append(row.origin)
    return dict(sorted(total.items())), where


def _pair(pair: Duplicate, firsts: Sequence[Row], seconds: Sequence[Row]) -> dict[str, Any]:
    first, second = firsts[pair.first].origin, seconds[pair.second].origin
    return {
        "kind": pair.kind,
        "similarity": round(pair.similarity, 4),
        "file": second.file,
        "line": second.line,
        "of": {"file": first.file, "line": first.line},
    }


def require(findings: Findings) -> None:
    """Refuse data in which something is an error.

    Raises:
        BadRows: lines that are no rows.
        DataError: the first other error.
    """
    if findings.problems:
        raise error_for(findings.problems)
    for remark in findings.remarks:
        if remark.severity == "error":
            raise from_info(ErrorInfo(remark.code, remark.message, remark.hint))
