"""Locating: where the text that is to be tagged stands among a prompt's tokens."""

from __future__ import annotations

from typing import NamedTuple

from gptflow.engine.tokenizer import Vocabulary
from gptflow.prompt import RenderedPrompt


class Token(NamedTuple):
    """Characters `start:end` of the text that a row stands for."""

    start: int
    end: int


class Located(NamedTuple):
    """A text in a prompt.

    Attributes:
        copies: how often the prompt holds it; the last one counts.
        first: the number of its first token.
        tokens: where each of its tokens stands in it; none where it is blank, or not there.
    """

    copies: int
    first: int
    tokens: list[Token]


def locate(vocabulary: Vocabulary, prompt: RenderedPrompt, text: str) -> Located:
    """Find the last piece of data that is the whole text."""
    segments = vocabulary.segments(prompt)
    found = [i for i, s in enumerate(segments) if not s.trusted and s.text == text]
    if not text or not found:
        return Located(0, 0, [])
    begin = sum(len(segment.text) for segment in segments[: found[-1]])
    end = begin + len(text)
    _, places = vocabulary.encode_with_places(segments)
    rows = [i for i, (a, b) in enumerate(places) if a < end and b > begin]
    tokens = [Token(max(places[i][0] - begin, 0), min(places[i][1], end) - begin) for i in rows]
    return Located(len(found), rows[0] if rows else 0, tokens)
