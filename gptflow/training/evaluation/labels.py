"""Label answers: accuracy, F1 in three averages, per class, confusion, and out-of-scope."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import BadLabel, EmptyData
from gptflow.training.data.rows import LABEL, LabelledText
from gptflow.training.evaluation.answers import Indices

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelAnswers:
    """One label per row.

    Attributes:
        rows: the test rows; each has a label for `head`.
        labels: every label that there is, in the order of the columns of `probs`.
        probs: `[rows, labels]`, each row a distribution; None where the model gives none.
        predicted: per row, its label; the most probable one by default.
        out_of_scope: the label that stands for "none of the others", where there is one.
        scope: `[rows]`, more for a row that is more likely in scope; for the AUROC.
    """

    rows: Sequence[LabelledText]
    labels: tuple[str, ...]
    probs: Floats | None = None
    predicted: tuple[str, ...] = ()
    head: str = LABEL
    out_of_scope: str | None = None
    scope: Floats | None = None
    primary: str = "macro_f1"

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            BadLabel: a row's label is none of `labels`.
            EmptyData: there are no rows.
            ValueError: `probs` are not finite, or no distributions, or of another shape.
        """
        if not self.rows:
            raise EmptyData("There are no test rows.", hint="Give a test file that holds some.")
        if self.probs is not None:
            probs = np.asarray(self.probs, dtype=np.float64)
            if probs.shape != (len(self.rows), len(self.labels)):
                raise ValueError(f"probs of {len(self.rows)} rows and labels: {probs.shape}")
            if not np.isfinite(probs).all():
                raise ValueError("a probability is not finite")
            # Half precision is off by a thousandth; logits are off by more.
            if (probs < 0).any() or (abs(probs.sum(axis=1) - 1) > 0.02).any():
                raise ValueError("a row of probs is no distribution: are they logits?")
            object.__setattr__(self, "probs", probs)
            if not self.predicted:
                best = tuple(self.labels[column] for column in probs.argmax(axis=1))
                object.__setattr__(self, "predicted", best)
        if len(self.predicted) != len(self.rows):
            raise ValueError(f"{len(self.predicted)} answers to {len(self.rows)} rows")
        if self.scope is not None and np.shape(self.scope) != (len(self.rows),):
            raise ValueError(f"scope of {len(self.rows)} rows: {np.shape(self.scope)}")
        known = set(self.labels)
        for row in self.rows:
            if (label := row.labels.get(self.head)) not in known:
                found = "has no label" if label is None else f"has the unknown label {label!r}"
                raise BadLabel(
                    f"{row.origin} {found} for head {self.head!r}.",
                    hint="Leave the row out, or add the label to the head's.",
                )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def gold(self) -> Indices:
        """`[rows]`, the right label's place in `labels`."""
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place[row.labels[self.head]] for row in self.rows], dtype=np.intp)

    @cached_property
    def guesses(self) -> Indices:
        """`[rows]`, the answer's place in `labels`; one past the end for any other answer."""
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place.get(label, len(place)) for label in self.predicted], dtype=np.intp)

    def confusion(self, indices: Indices | None = None) -> NDArray[np.int64]:
        """`[labels, labels + 1]`: right label by answer; the last column is for others."""
        gold = self.gold if indices is None else self.gold[indices]
        guesses = self.guesses if indices is None else self.guesses[indices]
        columns = len(self.labels) + 1
        counts = np.bincount(gold * columns + guesses, minlength=len(self.labels) * columns)
        return counts.reshape(len(self.labels), columns)

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """Accuracy and F1, as scikit-learn defines them with `zero_division=0`.

        `macro_f1` is over the labels that occur, in the rows or in the answers; `micro_f1` is the
        accuracy unless there is a label that stands for nothing. With `out_of_scope`, accuracy
        over the other rows, recall and precision of that label, and the AUROC of `scope`.
        """
        table = self.confusion(indices)
        _, _, f1, support = _per_class(table)
        total = int(support.sum())
        hits = int(np.trace(table))
        present = (support > 0) | (table[:, :-1].sum(axis=0) > 0)
        figures = {
            "accuracy": hits / total,
            "macro_f1": float(f1[present].mean()),
            "micro_f1": 2 * hits / (total + int(table[:, :-1].sum())),
            "weighted_f1": float((f1 * support).sum() / total),
        }
        if self.out_of_scope is not None:
            figures |= self._scope_metrics(table, indices, self.labels.index(self.out_of_scope))
        return figures

    def _scope_metrics(
        self, table: NDArray[np.int64], indices: Indices | None, outside: int
    ) -> dict[str, float]:
        inside = np.delete(table, outside, axis=0)
        hits = np.trace(table) - table[outside, outside]
        figures = {
            "in_scope_accuracy": _ratio(hits, inside.sum()),
            "out_of_scope_recall": _ratio(table[outside, outside], table[outside].sum()),
            "out_of_scope_precision": _ratio(table[outside, outside], table[:, outside].sum()),
        }
        if self.scope is not None:
            gold = self.gold if indices is None else self.gold[indices]
            scope = self.scope if indices is None else self.scope[indices]
            figures["out_of_scope_auroc"] = auroc(-scope, gold == outside)
        return figures

    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support of each label, in the labels' order."""
        precision, recall, f1, support = _per_class(self.confusion())
        return [
            {
                "label": label,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(self.labels)
        ]


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The chance that a positive row scores above another; ties count half (Mann-Whitney U).

    NaN where all rows are positive, or none is.
    """
    ones = int(positive.sum())
    others = len(positive) - ones
    if ones == 0 or others == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * others))


def _per_class(table: NDArray[np.int64]) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    hits = np.diagonal(table).astype(np.float64)
    guessed, support = table[:, :-1].sum(axis=0), table.sum(axis=1)
    precision = np.divide(hits, guessed, out=np.zeros_like(hits), where=guessed > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = (guessed + support).astype(np.float64)
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return precision, recall, f1, support


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")
