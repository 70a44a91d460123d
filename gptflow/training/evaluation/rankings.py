"""Ranking answers: HR@k, NDCG@k and the mean reciprocal rank, over all candidates.

Full rankings only: figures on a sample of candidates order models differently (Krichene and
Rendle 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import EmptyData
from gptflow.training.evaluation.answers import Indices


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RankingAnswers:
    """The place that each query's right item was given.

    Attributes:
        ranks: `[queries]`, 1 for the first place, 0 where the item was not ranked at all.
        cutoffs: the `k` of `hr@k` and `ndcg@k`.
        names: of the queries, for the list of the worst; numbers by default.
        texts: of the queries, for the same list; left out of what goes with an adapter.
    """

    ranks: NDArray[np.int64]
    cutoffs: tuple[int, ...] = (1, 5, 10)
    names: Sequence[str] = ()
    texts: Sequence[str] = ()
    primary: str = "ndcg@10"

    def __post_init__(self) -> None:
        ranks = np.asarray(self.ranks, dtype=np.int64)
        if ranks.ndim != 1 or (ranks < 0).any():
            raise ValueError("ranks are one number from 0 per query")
        if not len(ranks):
            raise EmptyData("There are no queries.", hint="Give test rows that hold some.")
        if self.names and len(self.names) != len(ranks):
            raise ValueError(f"{len(self.names)} names for {len(ranks)} queries")
        if self.texts and len(self.texts) != len(ranks):
            raise ValueError(f"{len(self.texts)} texts for {len(ranks)} queries")
        object.__setattr__(self, "ranks", ranks)

    def __len__(self) -> int:
        return len(self.ranks)

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """`r@1` is HR@1: the right item is in the first place. One right item per query."""
        ranks = self.ranks if indices is None else self.ranks[indices]
        ranked = ranks > 0
        figures = {"r@1": float((ranks == 1).mean())}
        gain = np.where(ranked, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)
        for k in self.cutoffs:
            near = ranked & (ranks <= k)
            figures[f"hr@{k}"] = float(near.mean())
            figures[f"ndcg@{k}"] = float(np.where(near, gain, 0.0).mean())
        figures["mrr"] = float(np.where(ranked, 1 / np.maximum(ranks, 1), 0.0).mean())
        return figures


def ranks_of(
    scores: NDArray[np.float64],
    right: NDArray[np.intp],
    excluded: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The right items' places when candidates are sorted by score.

    Items that score the same as the right one and stand before it in the catalogue go first, so
    that a model that scores all alike gains nothing.

    Args:
        scores: `[queries, items]`.
        right: `[queries]`, the right item's column.
        excluded: `[queries, items]`, items that are not candidates, such as those already seen.
    """
    rows = np.arange(len(scores))
    own = scores[rows, right][:, None]
    before = np.arange(scores.shape[1])[None, :] < right[:, None]
    better = (scores > own) | ((scores == own) & before)
    if excluded is not None:
        better &= ~excluded
    places: NDArray[np.int64] = better.sum(axis=1) + 1
    return places
