"""Matching: which stored questions a message asks, and how sure that is.

The confidence of a match is the probability that the best-ranked entry is the right one,
from its BM25 score by Platt scaling (Platt 1999). The two parameters per language were fitted
on the knowledge base's own paraphrases, each one left out in turn, on paraphrases written for
it and on questions that it does not answer: `python -m gptflow_customer_service.calibration`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from gptflow_customer_service import words
from gptflow_customer_service.knowledge import LOCALES, Entry, Knowledge, Locale
from gptflow_customer_service.retrieval import Index

CLOSE = 0.7
"""From here on the stored answer is given word for word."""
GOOD = 0.5
"""From here on the passages are good enough to answer from."""
WEAK = 0.33
"""Below this the entry is not even worth offering as an option."""

MAX_CLAUSES = 40
MAX_CLAUSE = 240
"""Characters. A longer one would gather evidence by its sheer length."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """confidence = 1 / (1 + exp(-(offset + slope * score)))"""

    offset: float
    slope: float

    def __call__(self, score: float) -> float:
        return 1 / (1 + math.exp(-(self.offset + self.slope * score)))


SCALES: Mapping[Locale, Scale] = {"en": Scale(-2.54, 3.71), "zh": Scale(-2.06, 1.01)}


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """An entry that a text may ask for.

    Attributes:
        confidence: the probability that it is the right one; 1 for a stored question itself.
        score: what `retrieval.Index` gave it.
    """

    entry: Entry
    confidence: float
    score: float = 0.0


class Matcher:
    """Looks texts up in a knowledge base."""

    def __init__(self, knowledge: Knowledge, scales: Mapping[Locale, Scale] = SCALES) -> None:
        self._entries = {locale: knowledge.of(locale) for locale in LOCALES}
        self._indexes = {
            locale: Index([_document(entry, knowledge) for entry in entries])
            for locale, entries in self._entries.items()
            if entries
        }
        self._verbatim: dict[tuple[Locale, str], Entry] = {}
        for locale, entries in self._entries.items():
            asked = [(entry, question) for entry in entries for question in entry.questions]
            # "I lost my card. What should I do?" is also asked by its first sentence. A whole
            # question comes before a part of another, and an earlier entry before a later one.
            parts = [
                (entry, part)
                for entry, question in asked
                for part in words.sentences(question)
                if len(words.content(part)) > 1
            ]
            for entry, text in (*asked, *parts):
                self._verbatim.setdefault((locale, words.key(text)), entry)
        self._scales = scales

    def match(self, text: str, locale: Locale, k: int = 5) -> list[Match]:
        """The entries that fit a single request best, the best one first."""
        if locale not in self._indexes:
            return []
        entries, scale = self._entries[locale], self._scales[locale]
        matches = [
            Match(entries[hit.position], scale(hit.score), hit.score)
            for hit in self._indexes[locale].search(text, k)
        ]
        if exact := self._verbatim.get((locale, words.key(text))):
            matches = [Match(exact, 1.0), *(m for m in matches if m.entry is not exact)][:k]
        return matches

    def read(self, message: str, locale: Locale) -> list[list[Match]]:
        """The matches of each request that a message makes.

        A message whose clauses are close to several entries makes several requests, in the
        order of the text. Any other makes one: that of the whole message, or of its clause
        with the surest match where the message is too long to be one request.
        """
        clauses = [clause[:MAX_CLAUSE] for clause in words.clauses(message)[:MAX_CLAUSES]]
        by_clause = [found for clause in clauses if (found := self.match(clause, locale))]
        close = {m[0].entry.id: m for m in reversed(by_clause) if m[0].confidence >= CLOSE}
        if len(close) > 1:
            return list(reversed(close.values()))
        whole = self.match(message, locale) if len(message) <= MAX_CLAUSE else []
        candidates = [whole, *by_clause] if whole else by_clause
        return [max(candidates, key=lambda matches: matches[0].confidence)] if candidates else []


def _document(entry: Entry, knowledge: Knowledge) -> str:
    """What an entry is found by. The questions in the other languages are part of it, so that
    a message that mixes two, such as 我的 refund 什么时候到账, is understood as one."""
    others = (knowledge.translated(entry, locale) for locale in LOCALES if locale != entry.locale)
    foreign = [question for other in others if other is not entry for question in other.questions]
    return "\n".join((*entry.questions, entry.answer, *foreign))
