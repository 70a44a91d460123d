"""Words: how a text in English or Chinese is cut up so that texts can be compared.

Chinese has no spaces, so a run of Han characters gives every character and every pair of
neighbours: word tokens alone find the right passage for one Chinese question in ten, single
characters and pairs for nine in ten (XQuAD; see the README). Latin words are stemmed with
Snowball's English stemmer.
"""

from __future__ import annotations

import functools
import html
import itertools
import re
import unicodedata

import snowballstemmer

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAN_PER_WORD = 1.7
"""Characters in an average Chinese word."""

_RUN = re.compile(rf"(?P<han>[{HAN}]+)|(?P<word>[^\W_{HAN}]+(?:[.,'’][^\W_{HAN}]+)*)")
_SENTENCE = re.compile(r"(?:[^.!?。！？\n]|[.!?](?=\S))+[.!?。！？]*")
_CLAUSE_END = re.compile(r"[.!?](?=\s|$)|[,;。！？；，\n]|\band\b|还有|另外|以及", re.IGNORECASE)

ENGLISH_STOP_WORDS = frozenset(
    """
    a about after again am an and any are as at be because been before but by can could did do
    does for from get got had has have he her here him his how i if in into is it its just like
    may me more most must my need no not now of on one only or our out please she should so
    some still than that the their them then there these they this to up us want was we were
    what when where which while who why will with would you your
    """.split()  # noqa: SIM905  words in a paragraph read better than a list of them
)
CHINESE_STOP_CHARACTERS = frozenset("的了吗呢吧啊我你您他她它们是在有和与或也都就还把被这那个么")


def normalise(text: str) -> str:
    """Compatibility forms folded (full-width digits, ligatures), HTML entities read, no case."""
    return unicodedata.normalize("NFKC", html.unescape(text)).casefold()


def key(text: str) -> str:
    """What is left of a text when case, spaces and punctuation do not count."""
    return "".join(match[0] for match in _RUN.finditer(normalise(text)))


def tokens(text: str) -> list[str]:
    """What search compares: stems of words, Han characters and pairs of them, in order.

    English stop words are left out; Han characters are not, as every pair may be a word.
    """
    found: list[str] = []
    for match in _RUN.finditer(normalise(text)):
        if han := match["han"]:
            found += han
            found += _pairs(han)
        elif match["word"] not in ENGLISH_STOP_WORDS:
            found.append(stem(match["word"]))
    return found


def content(text: str) -> list[str]:
    """What carries meaning: stems and Han pairs, without words such as `the` and 的.

    A lone Han character that has no neighbour stands for itself.
    """
    found: list[str] = []
    for match in _RUN.finditer(normalise(text)):
        if han := match["han"]:
            pairs = _pairs(han) or [han]
            found += (pair for pair in pairs if not set(pair) <= CHINESE_STOP_CHARACTERS)
        elif match["word"] not in ENGLISH_STOP_WORDS:
            found.append(stem(match["word"]))
    return found


def amount(text: str) -> float:
    """How many words carry meaning, to compare lengths across languages."""
    return sum(1.0 if token.isascii() else 1 / HAN_PER_WORD for token in content(text))


def sentences(text: str) -> list[str]:
    """The sentences of a text, closing marks included, word for word."""
    return [found for part in _SENTENCE.findall(text) if (found := part.strip())]


def clauses(text: str) -> list[str]:
    """The parts of a message that may each be a request of their own."""
    return [found for part in _CLAUSE_END.split(text) if (found := part.strip())]


def _pairs(han: str) -> list[str]:
    return [first + second for first, second in itertools.pairwise(han)]


@functools.lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """The word without its English ending: `refunded` and `refunds` become `refund`."""
    word = re.sub(r"['’]s?$", "", word).replace("’", "'")
    return str(_stemmer().stemWord(word)) if word.isascii() else word


@functools.cache
def _stemmer() -> snowballstemmer.stemmer:
    return snowballstemmer.stemmer("english")
