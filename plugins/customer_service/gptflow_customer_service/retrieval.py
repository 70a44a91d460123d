"""Retrieval: BM25 over English words and Chinese characters and character pairs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

from gptflow_customer_service import words

# Where JAX is installed, bm25s starts it, and JAX takes three quarters of a GPU's memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import bm25s


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A document's place in the index, and how well it fits."""

    position: int
    score: float


class Index:
    """Finds documents by their words. The same query always gives the same order.

    The scores are BM25 (Robertson and Zaragoza 2009, in Lucene's form, k1 = 1.2, b = 0.75)
    divided by the weight of a term that a single document holds, so that they do not grow
    with the number of documents: 1 means about as much evidence as one such term.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._size = len(documents)
        self._rarest = math.log(1 + (self._size - 0.5) / 1.5)
        self._bm25 = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        tokens = [words.tokens(text) for text in documents]
        self._is_empty = not any(tokens)
        if not self._is_empty:
            self._bm25.index(tokens, show_progress=False)

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The best `k` documents that share a word with the query, the best one first.

        Documents that fit equally well come in the order of the index.
        """
        if self._is_empty:
            return []
        known = [token for token in words.tokens(query) if token in self._bm25.vocab_dict]
        if not known:
            return []
        # Six decimals: what is left of float32's precision after summing must not break ties.
        scores = [round(float(score), 6) for score in self._bm25.get_scores(known)]
        best = sorted(range(self._size), key=lambda position: (-scores[position], position))
        return [Hit(p, scores[p] / self._rarest) for p in best[:k] if scores[p] > 0]
