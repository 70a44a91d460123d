"""Which language a message is written in, by its script."""

from __future__ import annotations

import re
import unicodedata

from gptflow_customer_service.knowledge import Locale
from gptflow_customer_service.words import HAN, HAN_PER_WORD

_HAN = re.compile(f"[{HAN}]")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_FOREIGN = re.compile(rf"[^\W\d_A-Za-z\u00c0-\u024f{HAN}]")


def detect(text: str) -> Locale | None:
    """The language with more words in the text; None if there are none, or of neither script."""
    text = unicodedata.normalize("NFKC", text)
    han = len(_HAN.findall(text)) / HAN_PER_WORD
    latin = len(_LATIN_WORD.findall(text))
    other = foreign_letters(text) / 5
    if max(han, latin) <= other:
        return None
    return "zh" if han >= latin else "en"


def foreign_letters(text: str) -> int:
    """How many letters are of a script that is neither Latin nor Han, such as kana or Arabic."""
    return sum(character.isalpha() for character in _FOREIGN.findall(text))


def is_foreign(text: str) -> bool:
    """Whether a text has words, but in no script that is served.

    Japanese mixes Han characters with kana, so a fifth of kana is enough.
    """
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and foreign_letters(text) >= max(2, letters / 5)


def settle(text: str, asked: Locale | None, before: Locale = "en") -> Locale:
    """The language to reply in: the one asked for, or else the text's, or the one before."""
    return asked or detect(text) or before
