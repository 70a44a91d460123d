"""BM25: the floor of retrieval and of answer matching (Robertson and Zaragoza 2009)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptflow.terms import search_terms

K1 = 1.2
B = 0.75


class BM25:
    """Passages, by how well they match a question's words, or characters and pairs of them.

    The inverse document frequency is log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.
    """

    def __init__(self, passages: Sequence[str], *, k1: float = K1, b: float = B) -> None:
        counted = [Counter(search_terms(passage)) for passage in passages]
        lengths = np.array([counts.total() for counts in counted], dtype=np.float64)
        relative = lengths / max(lengths.mean(), 1.0) if len(lengths) else lengths
        postings: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for place, counts in enumerate(counted):
            for term, count in counts.items():
                postings[term][0].append(place)
                postings[term][1].append(count)
        self._count = len(passages)
        self._postings: dict[str, tuple[NDArray[np.intp], NDArray[np.float64]]] = {}
        for term, (places, counts_) in postings.items():
            where, often = np.array(places, dtype=np.intp), np.array(counts_, dtype=np.float64)
            rarity = np.log(1 + (self._count - len(places) + 0.5) / (len(places) + 0.5))
            weight = often * (k1 + 1) / (often + k1 * (1 - b + b * relative[where]))
            self._postings[term] = (where, rarity * weight)

    def scores(self, question: str) -> NDArray[np.float64]:
        """`[passages]`."""
        total = np.zeros(self._count)
        for term in search_terms(question):
            if (posting := self._postings.get(term)) is not None:
                total[posting[0]] += posting[1]
        return total
