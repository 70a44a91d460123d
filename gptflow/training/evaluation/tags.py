"""Tag answers: whole spans as seqeval's strict mode counts them, and tokens with and without O.

The token report flatters: most tokens are O, and a span that is half right counts half. It is
given because much that is published is such a report; a model is judged by `entity_f1`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import EmptyData
from gptflow.training.data.rows import TaggedText
from gptflow.training.data.tagging import Extent, spans_of, tags_of
from gptflow.training.evaluation.answers import Indices

Counts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TagAnswers:
    """Tags in IOB2 for each token of each row.

    Attributes:
        rows: the test rows.
        predicted: per row, as many tags as it has tokens.
    """

    rows: Sequence[TaggedText]
    predicted: tuple[tuple[str, ...], ...]
    primary: str = "entity_f1"

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            EmptyData: there are no rows.
        """
        if not self.rows:
            raise EmptyData("There are no test rows.", hint="Give a test file that holds some.")
        if len(self.predicted) != len(self.rows):
            raise ValueError(f"{len(self.predicted)} answers to {len(self.rows)} rows")
        for row, tags in zip(self.rows, self.predicted, strict=True):
            if len(tags) != len(row.tokens):
                raise ValueError(f"{row.origin}: {len(tags)} tags for {len(row.tokens)} tokens")

    @classmethod
    def from_spans(
        cls, rows: Sequence[TaggedText], spans: Sequence[Sequence[tuple[int, int, str]]]
    ) -> TagAnswers:
        """Answers that are spans of characters: start, end, label.

        A span takes every token that it touches, and one that touches none is left out.
        """
        predicted = []
        for row, found in zip(rows, spans, strict=True):
            extents: list[Extent] = []
            for start, end, label in found:
                touched = [
                    place
                    for place, token in enumerate(row.tokens)
                    if token.start < end and start < token.end
                ]
                if touched:
                    extents.append((touched[0], touched[-1] + 1, label))
            predicted.append(tags_of(extents, len(row.tokens)))
        return cls(rows=rows, predicted=tuple(predicted))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The types of spans that occur in the rows or in the answers."""
        every = (tag for tags in (*(r.tags for r in self.rows), *self.predicted) for tag in tags)
        return tuple(sorted({tag[2:] for tag in every if tag != "O"}))

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """O, then B and I of each label."""
        return ("O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI"))

    @cached_property
    def _entities(self) -> Counts:
        """`[rows, labels, 3]`: spans that are right, found, and there to be found."""
        column = {label: number for number, label in enumerate(self.labels)}
        counts = np.zeros((len(self.rows), len(self.labels), 3), dtype=np.int64)
        for number, (row, tags) in enumerate(zip(self.rows, self.predicted, strict=True)):
            gold, found = set(spans_of(row.tags)), set(spans_of(tags))
            for kind, spans in enumerate((gold & found, found, gold)):
                for _, _, label in spans:
                    counts[number, column[label], kind] += 1
        return counts

    @cached_property
    def _tokens(self) -> Counts:
        """`[rows, tags, 3]`: tokens whose tag is right, answered, and to be answered."""
        column = {tag: number for number, tag in enumerate(self.tags)}
        counts = np.zeros((len(self.rows), len(self.tags), 3), dtype=np.int64)
        for number, (row, tags) in enumerate(zip(self.rows, self.predicted, strict=True)):
            for gold, found in zip(row.tags, tags, strict=True):
                counts[number, column[found], 1] += 1
                counts[number, column[gold], 2] += 1
                if gold == found:
                    counts[number, column[gold], 0] += 1
        return counts

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """`entity_*` over whole spans, `token_*` over tokens, `..._no_o` without O."""
        entities = _sum(self._entities, indices)
        tokens = _sum(self._tokens, indices)
        precision, recall, f1 = _micro(entities)
        return {
            "entity_f1": f1,
            "entity_precision": precision,
            "entity_recall": recall,
            "entity_macro_f1": _average(entities)["macro"][2],
            "token_accuracy": _micro(tokens)[2],
            "token_macro_f1": _average(tokens)["macro"][2],
            "token_micro_f1_no_o": _micro(tokens[1:])[2],
            "token_macro_f1_no_o": _average(tokens[1:])["macro"][2],
        }

    def entity_report(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support per type, then micro, macro and weighted."""
        return _report(self.labels, _sum(self._entities, None))

    def token_report(self, *, with_o: bool) -> list[dict[str, Any]]:
        """The same per tag."""
        first = 0 if with_o else 1
        return _report(self.tags[first:], _sum(self._tokens, None)[first:])


def _sum(counts: Counts, indices: Indices | None) -> Counts:
    total: Counts = (counts if indices is None else counts[indices]).sum(axis=0)
    return total


def _scores(counts: Counts) -> NDArray[np.float64]:
    """`[..., 3]`: precision, recall and F1, 0 where there is nothing to divide by."""
    hits, found, gold = (counts[..., kind].astype(np.float64) for kind in range(3))
    wholes = (found, gold, found + gold)
    parts = (hits, hits, 2 * hits)
    return np.stack(
        [
            np.divide(part, whole, out=np.zeros_like(hits), where=whole > 0)
            for part, whole in zip(parts, wholes, strict=True)
        ],
        axis=-1,
    )


def _micro(counts: Counts) -> tuple[float, float, float]:
    precision, recall, f1 = _scores(counts.sum(axis=0))
    return float(precision), float(recall), float(f1)


def _average(counts: Counts) -> dict[str, tuple[float, float, float]]:
    """Over the classes that occur; zeros where there is none."""
    present = counts[:, 1:].sum(axis=1) > 0
    if not present.any():
        return {"macro": (0.0, 0.0, 0.0), "weighted": (0.0, 0.0, 0.0)}
    scores, support = _scores(counts)[present], counts[present, 2]
    weights = support if support.sum() else np.ones_like(support)
    macro, weighted = scores.mean(axis=0), np.average(scores, axis=0, weights=weights)
    return {
        "macro": (float(macro[0]), float(macro[1]), float(macro[2])),
        "weighted": (float(weighted[0]), float(weighted[1]), float(weighted[2])),
    }


def _report(names: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    total = int(counts[:, 2].sum())
    rows = [(name, *_scores(counts[i]), counts[i, 2]) for i, name in enumerate(names)]
    rows.append(("micro", *_micro(counts), total))
    rows += [(name, *scores, total) for name, scores in _average(counts).items()]
    return [
        {
            "label": str(name),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in rows
    ]
