"""Grounding: may this answer be given, going by the passages that it cites?

It may when each of its sentences has one of theirs that makes the same claim: the two share at
least 60 % of the answer's content words, 80 % where it states numbers, every number with its
unit, every date and every name occurs in that very sentence, and neither of the two says `not`
where the other does not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from gptflow_customer_service import facts, words

MIN_OVERLAP = 0.6
MIN_FACT_OVERLAP = 0.8
"""For a sentence with numbers, which are only right for the very thing that they are said of."""

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
    content = words.content(answer)
    known = set(words.content("\n".join(passages)))
    if not content:
        return Grounding(0.0, (answer.strip(),))
    unsupported: list[str] = []
    quotes: list[tuple[int, str]] = []
    for sentence in words.sentences(answer):
        quote, strange = _support(sentence, passages)
        unsupported += strange
        if quote is not None and quote not in quotes:
            quotes.append(quote)
    ratio = sum(token in known for token in content) / len(content)
    return Grounding(ratio, tuple(dict.fromkeys(unsupported)), tuple(quotes))


def overlap(text: str, other: str) -> float:
    """The share of the text's distinct content words that the other text holds."""
    wanted = set(words.content(text))
    return len(wanted & set(words.content(other))) / len(wanted) if wanted else 0.0


def _support(sentence: str, passages: Sequence[str]) -> tuple[tuple[int, str] | None, list[str]]:
    """The passage and its sentence that say what this sentence says, or what speaks against.

    Which sentence makes the same claim is decided without the quantities: by them, a period of
    14 days would be supported by whatever else takes 14 days. Where several fit equally well,
    the claim leaves open which of them it is about, and all of them must bear it out.
    """
    quotes = [(n, quote) for n, text in enumerate(passages) for quote in words.sentences(text)]
    for index, quote in quotes:
        if words.key(quote) == words.key(sentence):
            return (index, quote), []
    scores = [_shared_claim(sentence, quote) for _, quote in quotes]
    best = max(scores, default=0.0)
    likeliest = [quote for quote, score in zip(quotes, scores, strict=True) if score == best]
    strange = [
        fact
        for _, quote in likeliest
        for fact in (*_strange_quantities(sentence, quote), *_strange_names(sentence, quote))
    ]
    least = MIN_FACT_OVERLAP if facts.quantities(sentence) else MIN_OVERLAP
    is_denied = any(_is_negative(sentence) != _is_negative(quote) for _, quote in likeliest)
    if best < least or is_denied:
        strange.append(sentence)
    return (None, strange) if strange else (likeliest[0], [])


def _shared_claim(sentence: str, quote: str) -> float:
    """The share of the sentence's content words, quantities aside, that the quote holds."""
    wanted = set(words.content(facts.without_quantities(sentence)))
    # Without its quantities a Chinese text has other pairs of neighbours than with them.
    given = {*words.content(quote), *words.content(facts.without_quantities(quote))}
    return len(wanted & given) / len(wanted) if wanted else 0.0


def _strange_quantities(sentence: str, quote: str) -> list[str]:
    known = facts.quantities(quote)
    bare = {canonical.partition(" ")[0] for canonical in known}
    return [
        written
        for canonical, written in facts.quantities(sentence).items()
        if canonical not in (known if " " in canonical else bare)
    ]


def _strange_names(sentence: str, quote: str) -> list[str]:
    folded = words.normalise(quote)
    stems = set(words.tokens(quote))
    return [
        name
        for name in facts.names(sentence)
        if words.normalise(name) not in folded
        or (name.isalpha() and name.isascii() and not set(words.tokens(name)) <= stems)
    ]


def _is_negative(text: str) -> bool:
    return bool(_NEGATION.search(words.normalise(text)))
