"""Requirements: what rows must be like to be trained on and tested with."""

from __future__ import annotations

from collections.abc import Sequence

from gptflow.errors import EmptyData, LeakedRows, OneClass, UnseenLabel
from gptflow.training.data.duplicates import NEAR, Duplicate, find_leaks
from gptflow.training.data.rows import LABEL, LabelledText, Row, TaggedText

_TOLD = 5
"""Labels and rows that a message names; the others are counted."""


def require_classes(rows: Sequence[LabelledText], head: str = LABEL) -> tuple[str, ...]:
    """The labels that occur for a head, sorted.

    Raises:
        EmptyData: no row has one.
        OneClass: all rows have the same one.
    """
    labels = sorted({row.labels[head] for row in rows if head in row.labels})
    if not labels:
        raise EmptyData(
            f"No training row has a label for {head!r}.",
            hint="Name the column of the labels: `--label NAME=COLUMN`.",
        )
    if len(labels) == 1:
        raise OneClass(
            f"Every training row has the label {labels[0]!r} for {head!r}.",
            hint="Add rows of the other labels, or leave this head out.",
        )
    return tuple(labels)


def require_seen(
    train: Sequence[LabelledText], test: Sequence[LabelledText], head: str = LABEL
) -> None:
    """Refuse test rows with labels that cannot have been learnt.

    Raises:
        UnseenLabel: names the labels and the first row.
    """
    known = {row.labels[head] for row in train if head in row.labels}
    strange: dict[str, LabelledText] = {}
    for row in test:
        if head in row.labels and row.labels[head] not in known:
            strange.setdefault(row.labels[head], row)
    if strange:
        names = ", ".join(repr(label) for label in list(strange)[:_TOLD])
        more = f" and {len(strange) - _TOLD} more" if len(strange) > _TOLD else ""
        raise UnseenLabel(
            f"Test rows have labels for {head!r} that no training row has: {names}{more}; "
            f"the first is {next(iter(strange.values())).origin}.",
            hint="Add training rows of these labels, or take them out of the test.",
        )


def require_types(rows: Sequence[TaggedText]) -> tuple[str, ...]:
    """The types of spans that occur, sorted.

    Raises:
        OneClass: there is no span at all.
    """
    types = sorted({tag[2:] for row in rows for tag in row.tags if tag != "O"})
    if not types:
        raise OneClass(
            "Every token of the training rows is O.", hint="Add rows that have spans in them."
        )
    return tuple(types)


def require_unleaked(train: Sequence[Row], test: Sequence[Row], *, near: float = NEAR) -> None:
    """Refuse test rows that the model will have seen.

    Raises:
        LeakedRows: names the first of them beside the training rows that they repeat.
    """
    leaks = find_leaks(train, test, near=near)
    if leaks:
        raise leaked(leaks, train, test)


def leaked(leaks: Sequence[Duplicate], train: Sequence[Row], test: Sequence[Row]) -> LeakedRows:
    """The error for these leaks; it names the first of them."""
    told = "; ".join(
        f"{test[leak.second].origin} repeats {train[leak.first].origin}" for leak in leaks[:_TOLD]
    )
    more = f"; and {len(leaks) - _TOLD} more" if len(leaks) > _TOLD else ""
    count = (
        "1 test row is a training row"
        if len(leaks) == 1
        else (f"{len(leaks)} test rows are training rows")
    )
    return LeakedRows(
        f"{count} too: {told}{more}.",
        hint="Take them out of the training rows, or make the split with `gptflow data split`.",
    )
