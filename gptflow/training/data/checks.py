"""Checks: whether rows will do to train and to test with."""

from __future__ import annotations

from collections.abc import Sequence

from gptflow.errors import EmptyData, OneClass, UnseenLabel
from gptflow.training.data.rows import LABEL, LabelledText


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
        names = ", ".join(repr(label) for label in list(strange)[:5])
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise UnseenLabel(
            f"Test rows have labels for {head!r} that no training row has: {names}{more}; "
            f"the first is {next(iter(strange.values())).origin}.",
            hint="Add training rows of these labels, or take them out of the test.",
        )
