"""Duplicates: the same story told twice, by exact text or by SimHash (Charikar 2002).

Two texts are one story if they are equal once links, case, spacing and the mark of a repost are
gone, or if their 64-bit SimHashes differ in three bits at most and they name the same figures and
tickers: "$A up 3%" and "$A up 5%" are two stories, however alike they look.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
import unicodedata
from collections import defaultdict
from itertools import pairwise

WINDOW = 3 * 86_400.0
"""Seconds of event time within which a story can be a duplicate of another."""

DISTANCE = 3
"""Most bits in which the SimHashes of one story differ."""

_FEWEST_WORDS = 4
"""Shorter texts are compared exactly: a SimHash of so few features says little."""

_BLOCK = 16
_URL = re.compile(r"https?://\S+|www\.\S+")
_REPOST = re.compile(r"^\s*rt\b[\s:]*(@\w+:?)?")
_WORD = re.compile(r"[一-鿿぀-ヿ가-힣]|[$#@]?\w+%?")


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of a text. `simhash` is 0 for texts too short for it."""

    exact: str
    simhash: int
    figures: str

    @classmethod
    def of(cls, text: str) -> Fingerprint:
        plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
        words = _WORD.findall(_URL.sub(" ", _REPOST.sub("", plain)))
        figures = sorted({w for w in words if w[0] == "$" or any(c.isdigit() for c in w)})
        return cls(
            exact=_digest(" ".join(words) or plain).hex(),
            simhash=_simhash(words) if len(words) >= _FEWEST_WORDS else 0,
            figures=_digest(" ".join(figures)).hex(),
        )

    def is_near(self, other: Fingerprint) -> bool:
        """Whether the SimHash takes the two for one story."""
        return (
            self.simhash != 0
            and other.simhash != 0
            and self.figures == other.figures
            and (self.simhash ^ other.simhash).bit_count() <= DISTANCE
        )


class Stories:
    """Stories seen so far, by fingerprint."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._exact: dict[str, list[tuple[float, str]]] = defaultdict(list)
        # Hashes that differ in three bits are equal in one of four blocks of sixteen.
        self._blocks: dict[tuple[int, int], list[tuple[float, str, Fingerprint]]] = defaultdict(
            list
        )

    def add(self, id: str, ts: float, fingerprint: Fingerprint) -> None:
        self._exact[fingerprint.exact].append((ts, id))
        for key in _blocks(fingerprint.simhash):
            self._blocks[key].append((ts, id, fingerprint))

    def find(self, ts: float, fingerprint: Fingerprint) -> str | None:
        """The earliest story that a text of this time repeats; exact repeats come first."""
        exact = [
            (then, id)
            for then, id in self._exact.get(fingerprint.exact, ())
            if abs(ts - then) <= self._window
        ]
        if exact:
            return min(exact)[1]
        near = {
            (then, id)
            for key in _blocks(fingerprint.simhash)
            for then, id, other in self._blocks.get(key, ())
            if abs(ts - then) <= self._window and fingerprint.is_near(other)
        }
        return min(near)[1] if near else None


def _blocks(simhash: int) -> list[tuple[int, int]]:
    if simhash == 0:
        return []
    return [(i, simhash >> i * _BLOCK & 0xFFFF) for i in range(64 // _BLOCK)]


def _simhash(words: list[str]) -> int:
    features = words + [f"{a} {b}" for a, b in pairwise(words)]
    weights = [0] * 64
    for feature in features:
        value = int.from_bytes(_digest(feature), "big")
        for bit in range(64):
            weights[bit] += 1 if value >> bit & 1 else -1
    return sum(1 << bit for bit, weight in enumerate(weights) if weight > 0)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
