"""Answers: what a model said to the test rows, whatever model it was, and its figures.

Every kind of answer computes its figures for any choice of rows, with repetition. That is all
that the bootstrap needs, so that intervals, floors and comparisons are written once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptflow.training.data.rows import Row

Indices = NDArray[np.intp]


class Answers(Protocol):
    """Answers to test rows, in the rows' order."""

    @property
    def primary(self) -> str:
        """The figure by which two models are compared."""
        ...

    def __len__(self) -> int: ...

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """The figures over these rows, by their place; over all by default.

        A row that occurs twice counts twice. Figures are larger where answers are better.
        """
        ...


def require_same(rows: Sequence[Row] | int, others: Mapping[str, Answers]) -> None:
    """Refuse to compare answers to different numbers of rows.

    Raises:
        ValueError: one of `others` has more or fewer.
    """
    count = rows if isinstance(rows, int) else len(rows)
    for name, answers in others.items():
        if len(answers) != count:
            raise ValueError(f"{name} answers {len(answers)} rows, not {count}")
