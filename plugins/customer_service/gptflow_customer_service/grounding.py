"""Grounding: may this answer be given, going by the passages that it cites?

It may when every number with its unit, every date and every name in it occurs in the
passages, when each sentence shares at least 60 % of its content words with one of theirs, and
when that sentence says neither `not` where the answer does not, nor the other way round.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from gptflow_customer_service import facts, words

MIN_OVERLAP = 0.6

_NEGATION = re.compile(
    r"\b(?:not|no|never|cannot|nothing|none|neither|without)\b|n['’]t\b|不|没|无|未|勿"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Grounding:
    """How much of an answer the passages support.

    Attributes:
        supported_ratio: the share of its content words that occur in them.
        unsupported: the numbers, names and sentences that they do not support.
        quotes: per sentence of the answer, which passage supports it and that one's sentence.
    """

    supported_ratio: float
    unsupported: tuple[str, ...]
    quotes: tuple[tuple[int, str], ...] = ()

    @property
    def ok(self) -> bool:
        return not self.unsupported and self.supported_ratio >= MIN_OVERLAP


def check(answer: str, passages: Sequence[str]) -> Grounding:
    """Compare an answer with the passages that it was made from."""
    evidence = "\n".join(passages)
    content = words.content(answer)
    known = set(words.content(evidence))
    if not content:
        return Grounding(0.0, (answer.strip(),))
    unsupported = [*_strange_quantities(answer, evidence), *_strange_names(answer, evidence)]
    quotes: list[tuple[int, str]] = []
    for sentence in words.sentences(answer):
        quote = _support(sentence, passages)
        if quote is None:
            unsupported.append(sentence)
        elif quote not in quotes:
            quotes.append(quote)
    ratio = sum(token in known for token in content) / len(content)
    return Grounding(ratio, tuple(dict.fromkeys(unsupported)), tuple(quotes))


def overlap(text: str, other: str) -> float:
    """The share of the text's distinct content words that the other text holds."""
    wanted = set(words.content(text))
    return len(wanted & set(words.content(other))) / len(wanted) if wanted else 0.0


def _strange_quantities(answer: str, evidence: str) -> list[str]:
    known = facts.quantities(evidence)
    bare = {canonical.partition(" ")[0] for canonical in known}
    return [
        written
        for canonical, written in facts.quantities(answer).items()
        if canonical not in (known if " " in canonical else bare)
    ]


def _strange_names(answer: str, evidence: str) -> list[str]:
    folded = words.normalise(evidence)
    stems = set(words.tokens(evidence))
    return [
        name
        for name in facts.names(answer)
        if words.normalise(name) not in folded
        or (name.isalpha() and name.isascii() and not set(words.tokens(name)) <= stems)
    ]


def _support(sentence: str, passages: Sequence[str]) -> tuple[int, str] | None:
    """The passage and its sentence that say what this sentence says."""
    best = max(
        (
            (overlap(sentence, quote), -index, quote)
            for index, passage in enumerate(passages)
            for quote in words.sentences(passage)
        ),
        default=(0.0, 0, ""),
        key=lambda candidate: candidate[:2],
    )
    score, index, quote = best
    if score < MIN_OVERLAP or _is_negative(sentence) != _is_negative(quote):
        return None
    return -index, quote


def _is_negative(text: str) -> bool:
    return bool(_NEGATION.search(words.normalise(text)))
