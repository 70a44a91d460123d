"""Extraction: the sentence of a passage that answers a question best, word for word."""

from __future__ import annotations

import dataclasses

from gptflow_customer_service import words
from gptflow_customer_service.grounding import overlap

PLAIN = 0.34
"""A third of the question's content words: the sentence is about what was asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Extract:
    """A sentence, and the share of the question's content words that it holds."""

    sentence: str
    score: float


def best_sentence(question: str, passage: str) -> Extract | None:
    """The sentence that shares most with the question, the first of equals.

    None if no sentence shares a content word with it.
    """
    extracts = [Extract(text, overlap(question, text)) for text in words.sentences(passage)]
    best = max(extracts, key=lambda extract: extract.score, default=None)
    return best if best is not None and best.score > 0 else None
