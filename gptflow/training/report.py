"""Reports: a model's answers to the test rows, each figure beside its floors.

The answers may come from anywhere: what is given are labels, probabilities, tags or ranks.

    floors = label_floors(train, test, labels)
    answers = LabelAnswers(rows=test, labels=labels, probs=probs)
    report = report_labels(answers, title="sentiment", dev=dev_answers, floors=floors)
    report.write(Path("runs/7"))
    if report.floor_wins: ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gptflow.training.data.rows import Row
from gptflow.training.evaluation import calibration
from gptflow.training.evaluation.answers import Answers, require_same
from gptflow.training.evaluation.bootstrap import RESAMPLES, Comparison, compare, intervals
from gptflow.training.evaluation.labels import LabelAnswers
from gptflow.training.evaluation.rankings import RankingAnswers, ranks_of
from gptflow.training.evaluation.samples import SampleAnswers, pass_at_k
from gptflow.training.evaluation.slices import slices_of
from gptflow.training.evaluation.summary import (
    AgainstFloor,
    Calibration,
    ClassRow,
    Confusion,
    Figure,
    ReliabilityBin,
    Report,
    Slice,
    Worst,
)
from gptflow.training.evaluation.tags import TagAnswers

__all__ = [
    "Answers",
    "Comparison",
    "LabelAnswers",
    "RankingAnswers",
    "Report",
    "SampleAnswers",
    "TagAnswers",
    "compare",
    "pass_at_k",
    "ranks_of",
    "report_labels",
    "report_rankings",
    "report_samples",
    "report_tags",
]

WORST = 20
"""Errors that a report shows."""

_LONGEST = 200
"""Characters of a row's text in a report."""


def report_labels(
    answers: LabelAnswers,
    *,
    title: str,
    dev: LabelAnswers | None = None,
    temperature: float | None = None,
    floors: Mapping[str, LabelAnswers] | None = None,
    train: Sequence[Row] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Report on a classifier.

    Args:
        answers: to the test rows, with probabilities at temperature 1.
        dev: answers to the development split; the temperature is fitted on them.
        temperature: in place of `dev`, where it was fitted before.
        floors: by name, answers of simpler models to the same test rows.
        train: the training rows; test rows that repeat one are a slice of their own.
        resamples: of the bootstrap.

    Raises:
        ValueError: the floors answer other rows.
    """
    scale = temperature or 1.0
    if temperature is None and dev is not None and dev.probs is not None:
        scale = calibration.fit_temperature(dev.probs, dev.gold)
    table = answers.confusion()
    return _report(
        "labels",
        answers,
        title,
        floors or {},
        resamples,
        seed,
        rows=answers.rows,
        train=train,
        classes=_class_rows(answers.per_class()),
        confusion=Confusion(
            labels=answers.labels,
            counts=tuple(tuple(int(count) for count in line) for line in table),
        ),
        calibration=_calibrate(answers, scale),
        worst=_worst_labels(answers),
    )


def report_tags(
    answers: TagAnswers,
    *,
    title: str,
    floors: Mapping[str, TagAnswers] | None = None,
    train: Sequence[Row] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Report on a tagger: whole spans strictly, and tokens with and without O.

    Args:
        train: the training rows; test rows that repeat one are a slice of their own.

    Raises:
        ValueError: the floors answer other rows.
    """
    return _report(
        "tags",
        answers,
        title,
        floors or {},
        resamples,
        seed,
        rows=answers.rows,
        train=train,
        classes=_class_rows(answers.entity_report()),
        tokens=_class_rows(answers.token_report(with_o=True)),
        tokens_without_o=_class_rows(answers.token_report(with_o=False)),
        worst=_worst_tags(answers),
    )


def report_rankings(
    answers: RankingAnswers,
    *,
    title: str,
    floors: Mapping[str, RankingAnswers] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Report on rankings, of items for users or of passages for questions.

    Raises:
        ValueError: the floors answer other queries.
    """
    hardest = np.argsort(-np.where(answers.ranks == 0, np.inf, answers.ranks), kind="stable")
    worst = tuple(
        Worst(
            where=str(answers.names[place] if answers.names else place),
            text=_short(answers.texts[place]) if answers.texts else "",
            right="place 1",
            answer=f"place {answers.ranks[place]}" if answers.ranks[place] else "not ranked",
            score=float(answers.ranks[place]),
        )
        for place in hardest[:WORST]
        if answers.ranks[place] != 1
    )
    return _report("rankings", answers, title, floors or {}, resamples, seed, worst=worst)


def report_samples(
    answers: SampleAnswers,
    *,
    title: str,
    floors: Mapping[str, SampleAnswers] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Report on sampled programs by pass@k.

    Raises:
        ValueError: the floors answer other problems.
    """
    unsolved = np.flatnonzero(np.asarray(answers.solved) == 0)[:WORST]
    worst = tuple(
        Worst(
            where=str(answers.names[place] if answers.names else place),
            text="",
            right="solved",
            answer=f"0 of {answers.tried[place]}",
            score=0.0,
        )
        for place in unsolved
    )
    return _report("samples", answers, title, floors or {}, resamples, seed, worst=worst)


def _report(
    kind: Any,
    answers: Answers,
    title: str,
    floors: Mapping[str, Answers],
    resamples: int,
    seed: int,
    *,
    rows: Sequence[Row] = (),
    train: Sequence[Row] = (),
    **parts: Any,
) -> Report:
    require_same(len(answers), floors)
    best = _best(floors, answers.primary)
    against = None
    if best is not None:
        comparison = compare(answers, floors[best], resamples=resamples, seed=seed)
        against = AgainstFloor.of(best, comparison)
    return Report(
        kind=kind,
        title=title,
        rows=len(answers),
        primary=answers.primary,
        metrics=_figures(answers, resamples, seed),
        floors={name: _figures(floor, resamples, seed) for name, floor in floors.items()},
        against_floor=against,
        slices=tuple(_slices(answers, floors[best] if best else None, rows, train)),
        **parts,
    )


def _figures(answers: Answers, resamples: int, seed: int) -> dict[str, Figure]:
    found = intervals(answers, resamples=resamples, seed=seed)
    return {name: Figure.of(interval) for name, interval in found.items()}


def _best(floors: Mapping[str, Answers], metric: str) -> str | None:
    return max(floors, key=lambda name: floors[name].metrics()[metric], default=None)


def _slices(
    answers: Answers, floor: Answers | None, rows: Sequence[Row], train: Sequence[Row]
) -> Iterable[Slice]:
    if not rows:
        return
    for by, name, indices in slices_of(rows, train):
        yield Slice(
            by=by,
            name=name,
            rows=len(indices),
            value=answers.metrics(indices)[answers.primary],
            floor=floor.metrics(indices)[answers.primary] if floor else None,
        )


def _class_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[ClassRow, ...]:
    return tuple(ClassRow(**row) for row in rows)


def _calibrate(answers: LabelAnswers, temperature: float) -> Calibration | None:
    if answers.probs is None:
        return None
    scaled = calibration.rescale(answers.probs, temperature)
    before = calibration.reliability(answers.probs, answers.gold)
    after = calibration.reliability(scaled, answers.gold)
    return Calibration(
        temperature=temperature,
        ece_before=calibration.expected_error(before),
        ece=calibration.expected_error(after),
        nll_before=calibration.negative_log_likelihood(answers.probs, answers.gold),
        nll=calibration.negative_log_likelihood(scaled, answers.gold),
        bins=tuple(ReliabilityBin(**each.as_dict()) for each in after),
    )


def _worst_labels(answers: LabelAnswers) -> tuple[Worst, ...]:
    """The wrong answers that the model was most sure of."""
    wrong = np.flatnonzero(answers.gold != answers.guesses)
    sure = np.ones(len(answers)) if answers.probs is None else answers.probs.max(axis=1)
    return tuple(
        Worst(
            where=str(answers.rows[place].origin),
            text=_short(answers.rows[place].text),
            right=answers.labels[answers.gold[place]],
            answer=answers.predicted[place],
            score=float(sure[place]),
        )
        for place in wrong[np.argsort(-sure[wrong], kind="stable")][:WORST]
    )


def _worst_tags(answers: TagAnswers) -> tuple[Worst, ...]:
    """The rows with the most spans that are wrong or were missed."""
    from gptflow.training.data.tagging import spans_of

    errors = []
    for place, (row, tags) in enumerate(zip(answers.rows, answers.predicted, strict=True)):
        gold, found = set(spans_of(row.tags)), set(spans_of(tags))
        if gold != found:
            errors.append((-len(gold ^ found), place, sorted(gold - found), sorted(found - gold)))
    return tuple(
        Worst(
            where=str(answers.rows[place].origin),
            text=_short(answers.rows[place].text),
            right=_spell(answers.rows[place].words, missed),
            answer=_spell(answers.rows[place].words, extra),
            score=float(-count),
        )
        for count, place, missed, extra in sorted(errors)[:WORST]
    )


def _spell(words: Sequence[str], spans: Iterable[tuple[int, int, str]]) -> str:
    return _short("; ".join(f"{' '.join(words[a:b])} ({label})" for a, b, label in spans))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
