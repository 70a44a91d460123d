"""Tokens of a text to be tagged, and spans of characters on their borders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from gptflow.terms import HAN, extents
from gptflow.training.data.rows import Token
from gptflow.training.data.tagging import tags_of

_IS_HAN = re.compile(f"[{HAN}]")

Marked = tuple[int, int, str]
"""Characters `start:end`, and the label."""


def tokens_of(text: str) -> tuple[Token, ...]:
    """Words and figures, marks and Chinese characters one by one."""
    return tuple(Token(start, end) for start, end in extents(text))


def align(words: Sequence[str], text: str | None = None) -> tuple[str, tuple[Token, ...]]:
    """Where each word stands in a text.

    Args:
        text: what the words are from; by default, and where they are not all found in it in
            this order, the words are put together, with a blank between them unless both are
            Chinese.
    """
    if text is not None:
        found: list[Token] = []
        place = 0
        for word in words:
            start = text.find(word, place)
            if start < 0 or text[place:start].strip():
                break
            place = start + len(word)
            found.append(Token(start, place))
        else:
            return text, tuple(found)
    pieces: list[str] = []
    for before, word in pairwise(("", *words)):
        close = before and _IS_HAN.match(before[-1]) and _IS_HAN.match(word[:1])
        pieces += ["" if not before or close else " ", word]
    joined = "".join(pieces)
    tokens: list[Token] = []
    place = 0
    for gap, word in zip(pieces[::2], pieces[1::2], strict=True):
        place += len(gap)
        tokens.append(Token(place, place + len(word)))
        place += len(word)
    return joined, tuple(tokens)


def tag_tokens(tokens: Sequence[Token], spans: Iterable[Marked]) -> tuple[str, ...]:
    """IOB2 tags of the tokens that the spans take.

    Raises:
        ValueError: a span begins or ends inside a token or on no token, or two overlap.
    """
    starts = {token.start: number for number, token in enumerate(tokens)}
    ends = {token.end: number + 1 for number, token in enumerate(tokens)}
    extents = []
    before = 0
    for start, end, label in sorted(spans):
        for place, borders, word in ((start, starts, "begins"), (end, ends, "ends")):
            if place not in borders:
                raise ValueError(f"the span {start}:{end} of {label!r} {word} {_at(place, tokens)}")
        if start < before:
            raise ValueError(f"the span {start}:{end} of {label!r} overlaps the one before it")
        before = end
        extents.append((starts[start], ends[end], label))
    return tags_of(extents, len(tokens))


def _at(place: int, tokens: Sequence[Token]) -> str:
    for token in tokens:
        if token.start < place < token.end:
            return f"inside the token {token.start}:{token.end}"
    return "on no token's border, such as at a blank"
