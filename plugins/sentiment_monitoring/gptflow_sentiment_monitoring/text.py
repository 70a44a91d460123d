"""What a post's text says of itself: its language, and the form in which a model reads it."""

from __future__ import annotations

import html
import re
import unicodedata

LINK = "<url>"

_URL = re.compile(r"https?://\S+|www\.\S+")
_SPACE = re.compile(r"\s+")
_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7a3]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
}
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")

SHARE = 0.2
"""Of the letters that a script needs for its language; tickers and names are Latin everywhere."""

TOKENS_PER_CHARACTER = {"zh": 1.7, "ja": 1.5, "ko": 2.0}
"""Of the default model, whose tokeniser has few characters of these languages."""

MOST_TOKENS_PER_CHARACTER = 1.2
"""Above this a text takes so many tokens that the model hardly reads it."""


def for_model(text: str) -> str:
    """One line, as compatible characters, HTML entities and links resolved."""
    plain = unicodedata.normalize("NFKC", html.unescape(text))
    return _SPACE.sub(" ", _URL.sub(LINK, plain)).strip()


def has_words(text: str) -> bool:
    """Whether anything is left of a text without its links."""
    return any(character.isalpha() for character in _URL.sub("", html.unescape(text)))


def guess_language(text: str) -> str:
    """A language code by script: `en` stands for all that is written in Latin, `und` for none."""
    found = {code: len(script.findall(text)) for code, script in _SCRIPTS.items()}
    letters = sum(found.values()) + len(_LATIN.findall(text))
    if letters == 0:
        return "und"
    if found["ja"] and found["ja"] + found["zh"] >= SHARE * letters:
        return "ja"
    code = max(found, key=lambda code: found[code])
    return code if found[code] >= SHARE * letters else "en"


def is_poorly_tokenised(language: str) -> bool:
    """Whether the default model spends too many tokens on a character of the language."""
    code = language.lower().partition("-")[0]
    return TOKENS_PER_CHARACTER.get(code, 0.0) > MOST_TOKENS_PER_CHARACTER
