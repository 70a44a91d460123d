"""The language of a text, as far as its script tells it."""

from __future__ import annotations

import unicodedata
from collections import Counter

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
