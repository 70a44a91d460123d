"""Slices: parts of the test rows on which a model may do worse than the average says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gptflow.training.data.duplicates import find_leaks
from gptflow.training.data.language import language_of
from gptflow.training.data.rows import Row
from gptflow.training.evaluation.answers import Indices

FEWEST = 10
"""Rows in a slice that is worth a figure."""


def slices_of(rows: Sequence[Row], train: Sequence[Row] = ()) -> Iterator[tuple[str, str, Indices]]:
    """By, name and places of every slice.

    By length in characters, in thirds; by language; and by whether a training row says the same,
    exactly or nearly. Where there is but one slice it is left out, and so are slices by length
    and language of less than ten rows.
    """
    lengths = np.array([len(row.content) for row in rows])
    short, long = (int(np.quantile(lengths, share)) for share in (1 / 3, 2 / 3))
    languages = np.array([row.language or language_of(row.content) for row in rows])
    leaked = np.zeros(len(rows), dtype=np.bool_)
    leaked[[leak.second for leak in find_leaks(train, rows)] if train else []] = True
    divisions = {
        "length": {
            f"up to {short}": lengths <= short,
            f"{short + 1} to {long}": (lengths > short) & (lengths <= long),
            f"above {long}": lengths > long,
        },
        "language": {str(name): languages == name for name in np.unique(languages)},
        "in training": {"no": ~leaked, "yes": leaked},
    }
    for by, masks in divisions.items():
        fewest = 1 if by == "in training" else FEWEST
        large = {name: mask for name, mask in masks.items() if mask.sum() >= fewest}
        if len(large) > 1:
            yield from ((by, name, np.flatnonzero(mask)) for name, mask in large.items())
