"""Repeats: training rows that teach nothing new, or through which the test's answers leak."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from gptflow.training.data.duplicates import normalise
from gptflow.training.data.rows import LabelledText, Row


@dataclasses.dataclass(frozen=True, slots=True)
class Distinct:
    """Training rows without repeats.

    Attributes:
        rows: what is left, in the order given.
        repeated: rows left out that say what an earlier row says, with the same labels.
        held_out: rows left out that the development or the test split holds too.
    """

    rows: Sequence[Row]
    repeated: int = 0
    held_out: int = 0

    def __str__(self) -> str:
        return (
            f"{self.repeated + self.held_out} training rows left out: {self.held_out} are in the "
            f"held-out rows too, {self.repeated} repeat another"
        )


def leave_out_repeats(train: Sequence[Row], held_out: Iterable[Row]) -> Distinct:
    """Training rows of which none is equal to a held-out row, nor to an earlier one.

    Rows are equal whose texts are, without case, spacing and links. A text with labels for one
    head does not leak into a test of another head, and a text that was labelled twice, and
    differently, stays twice.
    """
    known = {key for row in held_out for key in _tests(row)}
    seen: set[tuple[str, object]] = set()
    kept: list[Row] = []
    repeated = leaked = 0
    for row in train:
        if any(key in known for key in _tests(row)):
            leaked += 1
        elif isinstance(row, LabelledText) and (key := _says(row)) in seen:
            repeated += 1
        else:
            kept.append(row)
            if isinstance(row, LabelledText):
                seen.add(key)
    return Distinct(kept, repeated, leaked)


def _tests(row: Row) -> list[tuple[str, str]]:
    """What a row would give away if it were trained on: its text, for each of its heads."""
    text = normalise(row.content)
    heads = row.labels if isinstance(row, LabelledText) else ("",)
    return [(text, head) for head in heads]


def _says(row: LabelledText) -> tuple[str, object]:
    return normalise(row.text), tuple(sorted(row.labels.items()))
