"""Robustness: how far a model's figures fall when people mistype or use other words.

Every figure has its bootstrap interval, and a drop that of the paired bootstrap over the same rows.
Of two models the better one under changes is not to be worse on clean rows by more than half a
point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from gptflow.training.evaluation.answers import Answers
from gptflow.training.evaluation.bootstrap import RESAMPLES, compare, intervals
from gptflow.training.evaluation.perturbation import Change, perturb
from gptflow.training.evaluation.summary import Figure, Number

CLEAN_LOSS = 0.005
"""The most that robustness may cost on clean rows."""

SHARE = 0.2
"""Of the words of a row that can be changed."""

Answering = Callable[[Sequence[Any]], Mapping[str, Answers]]
"""A model: rows to answers by head."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Changed(_Strict):
    """A figure of changed rows.

    Attributes:
        rows: how many rows are changed; the others are as they were.
        words: how many words of them are.
        drop: the clean figure minus this one.
    """

    change: str
    rows: int
    words: int
    value: Figure
    drop: Figure


class Robustness(_Strict):
    """One head's figure, clean and changed."""

    head: str
    metric: str
    rows: int
    clean: Figure
    changed: tuple[Changed, ...]


class Against(_Strict):
    """One model beside another, on the same rows.

    Attributes:
        clean: its clean figure minus the other's.
        changed: by change, its figure minus the other's.
        less_drop: by change, the share of the other's drop that it does not have; null where the
            other drops by nothing.
        passed: whether it is worse on clean rows by half a point at most.
    """

    head: str
    metric: str
    clean: Figure
    changed: Mapping[str, Figure]
    less_drop: Mapping[str, Number]
    passed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a model said to the rows as they are, and to each change of them.

    Attributes:
        clean: by head.
        changed: by change, then by head.
        counts: by change, how many rows and words it changed.
    """

    clean: Mapping[str, Answers]
    changed: Mapping[str, Mapping[str, Answers]]
    counts: Mapping[str, tuple[int, int]]


def ask(
    model: Answering,
    rows: Sequence[Any],
    changes: Mapping[str, Change],
    *,
    share: float = SHARE,
    seed: int = 0,
) -> Asked:
    """Put rows to a model, clean and changed.

    Args:
        changes: by name, such as `typos`.
        share: of the words of a row that can be changed.
    """
    made = {name: perturb(rows, change, share=share, seed=seed) for name, change in changes.items()}
    return Asked(
        clean=model(rows),
        changed={name: model(list(each.rows)) for name, each in made.items()},
        counts={name: (each.changed, each.words) for name, each in made.items()},
    )


def robustness(
    asked: Asked, metric: str | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Robustness, ...]:
    """The figures of what was said, head by head.

    Args:
        metric: by default the answers' `primary`.
    """
    found = []
    for head, clean in asked.clean.items():
        name = metric or clean.primary
        changed = []
        for change, answers in asked.changed.items():
            rows, words = asked.counts[change]
            value = intervals(answers[head], resamples=resamples, seed=seed)[name]
            gap = compare(clean, answers[head], name, resamples=resamples, seed=seed).difference
            changed.append(
                Changed(
                    change=change,
                    rows=rows,
                    words=words,
                    value=Figure.of(value),
                    drop=Figure.of(gap),
                )
            )
        found.append(
            Robustness(
                head=head,
                metric=name,
                rows=len(clean),
                clean=Figure.of(intervals(clean, resamples=resamples, seed=seed)[name]),
                changed=tuple(changed),
            )
        )
    return tuple(found)


def against(
    first: Asked,
    second: Asked,
    metric: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Against, ...]:
    """A model beside another one that was put the same rows."""
    found = []
    for head in [head for head in first.clean if head in second.clean]:
        one, two = first.clean[head], second.clean[head]
        name = metric or one.primary
        clean = compare(one, two, name, resamples=resamples, seed=seed)
        changed, less = dict[str, Figure](), dict[str, Number]()
        for change, answers in first.changed.items():
            other = second.changed[change][head]
            gap = compare(answers[head], other, name, resamples=resamples, seed=seed)
            changed[change] = Figure.of(gap.difference)
            drop = clean.second - gap.second
            less[change] = 1 - (clean.first - gap.first) / drop if drop > 0 else None
        found.append(
            Against(
                head=head,
                metric=name,
                clean=Figure.of(clean.difference),
                changed=changed,
                less_drop=less,
                # A rounding error is no loss.
                passed=clean.second - clean.first <= CLEAN_LOSS + 1e-9,
            )
        )
    return tuple(found)
