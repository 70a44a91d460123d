"""Scored pairs as rankings: per query, where its best right candidate comes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import EmptyData
from gptflow.training.data.rows import ScoredPair
from gptflow.training.evaluation.bm25 import BM25
from gptflow.training.evaluation.rankings import RankingAnswers

RIGHT = 0.5
"""A candidate whose score is above this is right."""


def rank_pairs(
    rows: Sequence[ScoredPair], scores: NDArray[np.float64] | Sequence[float]
) -> RankingAnswers:
    """Rank each query's candidates by a model's scores, more first.

    Queries without a right candidate, or with right ones only, say nothing and are left out.
    Candidates that score the same as the best right one go before it.

    Args:
        scores: one per row.

    Raises:
        EmptyData: no query has a right candidate and a wrong one.
    """
    if len(scores) != len(rows):
        raise ValueError(f"{len(scores)} scores for {len(rows)} rows")
    ranks, names, texts = [], [], []
    for query, places in _by_query(rows).items():
        right = [float(scores[place]) for place in places if rows[place].score > RIGHT]
        wrong = [float(scores[place]) for place in places if rows[place].score <= RIGHT]
        if right and wrong:
            ranks.append(1 + sum(score >= max(right) for score in wrong))
            names.append(str(rows[places[0]].origin))
            texts.append(query)
    if not ranks:
        raise EmptyData(
            "No query has both a right candidate and a wrong one.",
            hint="Give several candidates a query, with scores of 1 and 0.",
        )
    return RankingAnswers(ranks=np.array(ranks), names=names, texts=texts, primary="r@1")


def pair_floors(rows: Sequence[ScoredPair]) -> Mapping[str, RankingAnswers]:
    """BM25 of the query against all candidates there are."""
    candidates = list(dict.fromkeys(row.candidate for row in rows))
    place = {candidate: number for number, candidate in enumerate(candidates)}
    index = BM25(candidates)
    found = {query: index.scores(query) for query in _by_query(rows)}
    return {"bm25": rank_pairs(rows, [found[r.query][place[r.candidate]] for r in rows])}


def _by_query(rows: Sequence[ScoredPair]) -> Mapping[str, list[int]]:
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.query].append(place)
    return places
