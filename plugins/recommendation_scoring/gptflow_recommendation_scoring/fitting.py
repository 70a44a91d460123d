"""Fitting: a blend from what people were shown and took.

    python -m gptflow_recommendation_scoring.fitting SHOWN.jsonl BLEND.json

A row is one item that was shown: `{"group": ..., "features": {"popularity": 980, "interest": 2.1,
"position": 3}, "taken": true}`. `group` is the request or the user; `features` are raw signals,
also `interest` (an answer's `interest.margin`) and `similarity`. A `position` is learnt from, since
people take what stands first, and is then left out: nothing has a place before it is ranked.

A fifth of the groups is held out, and measured on. Needs scikit-learn (`gptflow[train]`).
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, FiniteFloat, ValidationError

from gptflow_recommendation_scoring.blend import Blend

POSITION = "position"
HELD_OUT = 0.2
DEPTH = 10
BINS = 10

RIDGE = 1e-4
"""On squared weights of standardised signals, so that no weight grows without bound."""


class Shown(BaseModel):
    """One item that was shown."""

    group: str
    features: dict[str, FiniteFloat | None]
    taken: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Of held-out groups.

    Attributes:
        auc: how often a taken item has the higher score of two of all groups.
        hit_rate, ndcg: of each group's taken items, among the first ten of the group.
        ece: expected calibration error of the probabilities.
    """

    auc: float
    hit_rate: float
    ndcg: float
    ece: float


def fit(rows: Sequence[Shown]) -> Blend:
    """Weights by a conditional logit, probabilities by Platt scaling.

    The weights are those under which what was taken is likeliest to be chosen among what its group
    was shown (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"), so that
    signals which differ between groups only, such as a user's activity, say nothing. Then one scale
    and one bias turn the scores into probabilities (Platt 1999).

    Raises:
        ValueError: no group has both an item that was taken and one that was not.
    """
    from sklearn.linear_model import LogisticRegression

    taken = np.array([row.taken for row in rows])
    groups = [g for g in _groups(rows) if 0 < taken[g].sum() < len(g)]
    if not groups:
        raise ValueError(
            "no group has both an item that was taken and one that was not: nothing to learn"
        )
    names = sorted({name for row in rows for name in row.features})
    table = np.array([[_number(row.features.get(name)) for name in names] for row in rows])
    table[:, np.isnan(table).all(axis=0)] = 0.0
    means = np.nanmean(table, axis=0)
    table = np.where(np.isnan(table), means, table)
    scale = table.std(axis=0)
    scale[scale == 0] = 1.0
    standard = (table - means) / scale
    learnt = _conditional_logit([(standard[g], taken[g]) for g in groups])
    kept = [i for i, name in enumerate(names) if name != POSITION]
    if not kept:
        raise ValueError("the rows have no features to learn from")
    scores = standard[:, kept] @ learnt[kept]
    platt = LogisticRegression(C=1e6, max_iter=1000).fit(scores[:, None], taken)
    slope = float(platt.coef_[0, 0])
    return Blend(
        weights={names[i]: slope * float(learnt[i] / scale[i]) for i in kept},
        means={names[i]: float(means[i]) for i in kept},
        bias=float(platt.intercept_[0]),
    )


def _conditional_logit(
    groups: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]],
) -> NDArray[np.float64]:
    """`[signals]`, from `[items, signals]` and which items were taken, per group."""
    from scipy.optimize import minimize

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total = RIDGE * float(weights @ weights)
        slope = 2 * RIDGE * weights
        for table, taken in groups:
            scores = table @ weights
            likely = np.exp(scores - scores.max())
            likely /= likely.sum()
            total -= float(np.log(likely[taken]).mean()) / len(groups)
            slope += (likely @ table - table[taken].mean(axis=0)) / len(groups)
        return total, slope

    found = minimize(loss, np.zeros(groups[0][0].shape[1]), jac=True, method="L-BFGS-B")
    learnt: NDArray[np.float64] = found.x
    return learnt


def measure(blend: Blend, rows: Sequence[Shown]) -> Figures:
    """Figures of rows that the blend was not fitted on."""
    from sklearn.metrics import roc_auc_score

    scores = np.array([_score(blend, row.features) for row in rows])
    taken = np.array([row.taken for row in rows])
    probabilities = np.array([blend.probability(score) for score in scores])
    hits, gains = [], []
    for places in _groups(rows):
        order = sorted(places, key=lambda i: -scores[i])
        for rank, i in enumerate(order, start=1):
            if rows[i].taken:
                hits.append(rank <= DEPTH)
                gains.append(1 / np.log2(rank + 1) if rank <= DEPTH else 0.0)
    return Figures(
        auc=float(roc_auc_score(taken, scores)) if 0 < taken.sum() < len(taken) else float("nan"),
        hit_rate=float(np.mean(hits)) if hits else float("nan"),
        ndcg=float(np.mean(gains)) if gains else float("nan"),
        ece=_calibration_error(probabilities, taken),
    )


def divide(rows: Sequence[Shown], seed: int = 0) -> tuple[list[Shown], list[Shown]]:
    """Rows to fit on, and rows of other groups to measure with."""
    groups = sorted({row.group for row in rows})
    random.Random(seed).shuffle(groups)  # noqa: S311
    held = set(groups[: round(HELD_OUT * len(groups))])
    fitted = [row for row in rows if row.group not in held]
    return fitted, [row for row in rows if row.group in held]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _score(blend: Blend, features: Mapping[str, float | None]) -> float:
    return sum(w * blend.centred(name, features.get(name)) for name, w in blend.weights.items())


def _groups(rows: Sequence[Shown]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.group, []).append(i)
    return list(found.values())


def _calibration_error(probabilities: NDArray[np.float64], taken: NDArray[np.bool_]) -> float:
    """Mean distance of probability and frequency, over bins with as many rows each."""
    order = np.argsort(probabilities, kind="stable")
    error = 0.0
    for part in np.array_split(order, BINS):
        if len(part):
            error += len(part) * abs(probabilities[part].mean() - taken[part].mean())
    return float(error / len(probabilities))


def read(path: Path) -> Iterator[Shown]:
    """The rows of a file.

    Raises:
        ValueError: a line is none; says which.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield Shown.model_validate_json(line)
        except ValidationError as error:
            first: Any = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise ValueError(f"{path}:{number}: {where}: {first['msg']}") from None


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("Usage: python -m gptflow_recommendation_scoring.fitting SHOWN.jsonl BLEND.json")
    try:
        fitted, held = divide(list(read(Path(sys.argv[1]))))
        blend = fit(fitted)
    except (OSError, ValueError) as error:
        sys.exit(f"Not fitted: {error}.")
    Path(sys.argv[2]).write_text(json.dumps(blend.model_dump(), indent=1) + "\n", encoding="utf-8")
    figures = measure(blend, held)
    print(f"{len(fitted)} rows, {len(held)} held out:", dataclasses.asdict(figures))


if __name__ == "__main__":
    main()
