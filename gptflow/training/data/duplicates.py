"""Duplicates: rows that say the same, and test rows that training has seen.

Exact duplicates are equal without case, spacing, links and invisible characters. Near ones share
at least four fifths of their features, which are words and pairs of words, or characters and
pairs of them in Chinese (Jaccard). Two sets that are so alike share one of the few rarest features
of each (prefix filtering, Chaudhuri et al. 2006; Bayardo et al. 2007), so only rows that do are
compared, and none is missed but among thousands of rows without a rare word.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from gptflow.cleaning import clean
from gptflow.training.data.rows import Row

NEAR = 0.8
"""Least share of features that near duplicates have in common."""

FEWEST_FEATURES = 8
"""Texts of fewer are compared exactly: "Where is my card?" is a question of its own."""

_COMMONEST = 2000
"""Rows that share a feature which is then too common to look candidates up by."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_URL = re.compile(r"https?://\S+|www\.\S+")
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicate:
    """Two rows that say the same.

    Attributes:
        first, second: their places; `first` comes before `second`.
        similarity: 1 where they are equal.
    """

    first: int
    second: int
    similarity: float
    kind: Literal["exact", "near"]


def normalise(text: str) -> str:
    """What is compared of a text."""
    plain = unicodedata.normalize("NFKC", html.unescape(clean(text))).casefold()
    return " ".join(_URL.sub(" ", plain).split()) or plain


def find_duplicates(rows: Sequence[Row], *, near: float = NEAR) -> list[Duplicate]:
    """Every exact duplicate beside the first row it repeats, and every near pair of the rest.

    Args:
        near: least Jaccard similarity, above 0; above 1, near duplicates are not looked for.
    """
    texts = [normalise(row.content) for row in rows]
    firsts: dict[str, int] = {}
    found: list[Duplicate] = []
    for place, text in enumerate(texts):
        first = firsts.setdefault(text, place)
        if first != place:
            found.append(Duplicate(first, place, 1.0, "exact"))
    if near <= 1:
        places = list(firsts.values())
        sets = [frozenset(_features(texts[place])) for place in places]
        for one, other, similarity in _near_pairs(sets, near):
            found.append(Duplicate(places[one], places[other], similarity, "near"))
    return sorted(found, key=lambda pair: (pair.second, pair.first))


def find_leaks(train: Sequence[Row], test: Sequence[Row], *, near: float = NEAR) -> list[Duplicate]:
    """Test rows that are training rows too, once each, beside the training row most like it.

    `first` is a place in `train`, `second` one in `test`.
    """
    best: dict[int, Duplicate] = {}
    # Each part without its own repeats, so that none stands between a test row and its like.
    parts = [_first_places(rows) for rows in (train, test)]
    chosen = [*(train[place] for place in parts[0].values())]
    offset = len(chosen)
    chosen += [test[place] for place in parts[1].values()]
    train_places, test_places = list(parts[0].values()), list(parts[1].values())
    for pair in find_duplicates(chosen, near=near):
        if pair.first < offset <= pair.second:
            place = test_places[pair.second - offset]
            leak = dataclasses.replace(pair, first=train_places[pair.first], second=place)
            if place not in best or leak.similarity > best[place].similarity:
                best[place] = leak
    # Repeats within the test part leak as their first does.
    repeated = [normalise(row.content) for row in test]
    for place, text in enumerate(repeated):
        first = parts[1][text]
        if first in best and place != first:
            best[place] = dataclasses.replace(best[first], second=place)
    return [best[place] for place in sorted(best)]


def groups_of(count: int, duplicates: Sequence[Duplicate]) -> list[int]:
    """Per row, the first row of those that it is a duplicate of, directly or through others."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for pair in duplicates:
        one, other = sorted((root(pair.first), root(pair.second)))
        parent[other] = one
    return [root(place) for place in range(count)]


def _first_places(rows: Sequence[Row]) -> dict[str, int]:
    firsts: dict[str, int] = {}
    for place, row in enumerate(rows):
        firsts.setdefault(normalise(row.content), place)
    return firsts


def _features(text: str) -> Iterator[str]:
    words = _WORD.findall(text)
    yield from words
    for one, two in pairwise(words):
        yield f"{one} {two}"


def _near_pairs(sets: Sequence[frozenset[str]], near: float) -> Iterator[tuple[int, int, float]]:
    counts = Counter(feature for features in sets for feature in features)
    # The rarest first; equal ones in a fixed order.
    ordered = [sorted(features, key=lambda f: (counts[f], f)) for features in sets]
    index: defaultdict[str, list[int]] = defaultdict(list)
    # Smaller sets first, so that what is in the index is never larger than what is looked up.
    for place in sorted(range(len(sets)), key=lambda i: (len(sets[i]), i)):
        features = ordered[place]
        size = len(features)
        if size < FEWEST_FEATURES:
            continue
        prefix = features[: size - math.ceil(near * size - 1e-9) + 1]
        candidates = {
            other
            for feature in prefix
            for other in index.get(feature, ())
            if len(sets[other]) >= near * size
        }
        for other in sorted(candidates):
            common = len(sets[place] & sets[other])
            similarity = common / (size + len(sets[other]) - common)
            if similarity >= near:
                yield min(place, other), max(place, other), similarity
        for feature in prefix:
            if len(index[feature]) < _COMMONEST:
                index[feature].append(place)
