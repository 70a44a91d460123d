"""A vector space of short texts: TF-IDF over words, and over character pairs in Chinese.

Words of Chinese and Japanese are not written apart, so their runs of characters are indexed as
single characters and overlapping pairs.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

Vector = Mapping[str, float]
"""Weights by token, in the order of the tokens, so that sums come out the same every time."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUN = re.compile(f"[{_CJK}]+|[^\\W_{_CJK}]+")
_IS_CJK = re.compile(f"[{_CJK}]")
_COMMON = """
a an and are as at be but by for from has have how in into is it its of on or that the their them
they this to was were what when which who why will with you your 的 了 和 与 在 是
"""
_STOP = frozenset(_COMMON.split())


def tokens(text: str) -> list[str]:
    """Lower-case words without the commonest ones; Chinese characters and their pairs."""
    found: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match.group()
        if _IS_CJK.match(run):
            found += run
            found += (a + b for a, b in itertools.pairwise(run))
        else:
            found.append(run)
    return [token for token in found if token not in _STOP]


class TextSpace:
    """The texts to compare, as unit vectors.

    Args:
        texts: those that get a number, from 0.
        others: texts that only help to tell common tokens from rare ones.
    """

    def __init__(self, texts: Sequence[str], others: Iterable[str] = ()) -> None:
        counts = [Counter(tokens(text)) for text in texts]
        others_counts = [Counter(tokens(text)) for text in others]
        documents = Counter(token for each in (*counts, *others_counts) for token in each)
        total = len(counts) + len(others_counts)
        self._idf = {token: math.log(1 + total / n) for token, n in documents.items()}
        self.vectors = [self._unit(each) for each in counts]
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, vector in enumerate(self.vectors):
            for token, weight in vector.items():
                self._postings[token].append((number, weight))

    def mean(self, weighted: Iterable[tuple[str, float]]) -> Vector:
        """The unit vector of the weighted mean of some texts; empty if none has a token."""
        sums: dict[str, list[float]] = defaultdict(list)
        for text, weight in weighted:
            for token, value in self._unit(Counter(tokens(text))).items():
                sums[token].append(weight * value)
        return _normalised({token: math.fsum(sums[token]) for token in sorted(sums)})

    def cosines(self, vector: Vector) -> dict[int, float]:
        """The cosine with every text that shares a token, by the text's number."""
        dots: dict[int, float] = defaultdict(float)
        for token, weight in vector.items():
            for number, other in self._postings.get(token, ()):
                dots[number] += weight * other
        return {number: min(dot, 1.0) for number, dot in dots.items()}

    def cosine(self, a: int, b: int) -> float:
        """The cosine of two texts, by their numbers."""
        other = self.vectors[b]
        dot = sum(weight * other.get(token, 0.0) for token, weight in self.vectors[a].items())
        return min(dot, 1.0)

    def _unit(self, counts: Counter[str]) -> Vector:
        return _normalised(
            {
                token: (1 + math.log(counts[token])) * self._idf[token]
                for token in sorted(counts)
                if token in self._idf
            }
        )


def _normalised(vector: Vector) -> Vector:
    length = math.sqrt(math.fsum(value * value for value in vector.values()))
    return {token: value / length for token, value in vector.items()} if length else {}
