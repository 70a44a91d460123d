"""Terms: how a text is cut up for the floors. English by words, Chinese by characters."""

from __future__ import annotations

import html
import re
import unicodedata
from itertools import pairwise

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff"
"""Chinese and Japanese characters, for a class of a regular expression."""

_URL = re.compile(r"https?://\S+|www\.\S+")
_IS_HAN = re.compile(f"[{HAN}]")
_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_TOKEN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:[.,'’][^\W_{HAN}]+)*|[^\w\s]|_")
_WORD_OR_MARK = re.compile(rf"[{HAN}]|[$#@]?[^\W{HAN}]+|[^\w\s]")


def words(text: str, *, marks: bool = False) -> list[str]:
    """The words of a text in order, without case; each Chinese or Japanese character is one.

    Links are one word, as every link is another string.

    Args:
        marks: punctuation is words too, and `$`, `#` and `@` belong to what they stand before.
    """
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    return (_WORD_OR_MARK if marks else _WORD).findall(_URL.sub(" linkurl ", plain))


def terms(text: str, *, marks: bool = False) -> list[str]:
    """The words, and the pairs of neighbours."""
    found = words(text, marks=marks)
    return found + [f"{one} {two}" for one, two in pairwise(found)]


def search_terms(text: str) -> list[str]:
    """The words, and the pairs of neighbouring Chinese characters, every one of which may be one.

    Pairs of English words say little more than the words do, and outweigh them in a long text.
    """
    found = words(text)
    return found + [
        one + two for one, two in pairwise(found) if _IS_HAN.match(one) and _IS_HAN.match(two)
    ]


def extents(text: str) -> list[tuple[int, int]]:
    """Where its tokens stand: words and figures, marks and Chinese characters one by one."""
    return [match.span() for match in _TOKEN.finditer(text)]
