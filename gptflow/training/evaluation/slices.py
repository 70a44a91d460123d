"""Slices: parts of the test rows on which a model may do worse than the average says."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from gptflow.training.data.rows import Row
from gptflow.training.evaluation.answers import Indices

FEWEST = 10
"""Rows in a slice that is worth a figure."""

_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "CYRILLIC": "cyrillic",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "GREEK": "greek",
    "DEVANAGARI": "devanagari",
    "THAI": "thai",
    "LATIN": "latin",
}
_KANA_SHARE = 0.1
"""Japanese mixes kana with Han characters; this much kana makes a text Japanese."""


def language_of(text: str) -> str:
    """The language as far as the script tells it: `zh`, `ja`, `ko`, else the script's name.

    `none` where there are no letters.
    """
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            word = unicodedata.name(character, "").partition(" ")[0]
            counts[_SCRIPTS.get(word, "other")] += 1
    if not counts:
        return "none"
    if counts["ja"] >= _KANA_SHARE * counts.total():
        return "ja"
    # A Han character says about as much as a word of a few letters does.
    weights = {name: n * (3 if name in ("zh", "ja") else 1) for name, n in counts.items()}
    return max(sorted(weights), key=weights.__getitem__)


def slices_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, Indices]]:
    """By, name and places of every slice: thirds by length in characters, then languages.

    A division into one slice is left out, and so are slices of less than ten rows.
    """
    lengths = np.array([len(row.content) for row in rows])
    short, long = (int(np.quantile(lengths, share)) for share in (1 / 3, 2 / 3))
    by_length = (
        (f"up to {short}", lengths <= short),
        (f"{short + 1} to {long}", (lengths > short) & (lengths <= long)),
        (f"above {long}", lengths > long),
    )
    parts = [("length", name, np.flatnonzero(mask)) for name, mask in by_length]
    languages = np.array([row.language or language_of(row.content) for row in rows])
    parts += [
        ("language", str(name), np.flatnonzero(languages == name)) for name in np.unique(languages)
    ]
    for by in ("length", "language"):
        large = [part for part in parts if part[0] == by and len(part[2]) >= FEWEST]
        if len(large) > 1:
            yield from large
