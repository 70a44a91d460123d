"""Slices: parts of the test rows on which a model may do worse than the average says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gptflow.training.data.language import language_of
from gptflow.training.data.rows import Row
from gptflow.training.evaluation.answers import Indices

FEWEST = 10
"""Rows in a slice that is worth a figure."""


def slices_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, Indices]]:
    """By, name and places of every slice: thirds by length in characters, then languages.

    A division into one slice is left out, and so are slices of less than ten rows.
    """
    lengths = np.array([len(row.content) for row in rows])
    short, long = (int(np.quantile(lengths, share)) for share in (1 / 3, 2 / 3))
    by_length = (
        (f"up to {short}", lengths <= short),
        (f"{short + 1} to {long}", (lengths > short) & (lengths <= long)),
        (f"above {long}", lengths > long),
    )
    parts = [("length", name, np.flatnonzero(mask)) for name, mask in by_length]
    languages = np.array([row.language or language_of(row.content) for row in rows])
    parts += [
        ("language", str(name), np.flatnonzero(languages == name)) for name in np.unique(languages)
    ]
    for by in ("length", "language"):
        large = [part for part in parts if part[0] == by and len(part[2]) >= FEWEST]
        if len(large) > 1:
            yield from large
