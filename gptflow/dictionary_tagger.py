"""The dictionary: the floor of tagging. What a phrase was in the training rows, it is in a text.

A task whose tagger does not beat it serves it: in an adapter's folder it is `floor-HEAD.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Self

from gptflow.errors import AdapterCorrupt
from gptflow.heads import Span
from gptflow.terms import extents

_LONGEST = 8
"""Tokens in a phrase that is looked up."""

_OFTEN = 0.5

Phrase = tuple[str, ...]
"""Tokens without case."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DictionaryTagger:
    """Looks up phrases, the longest first, from left to right, without case.

    Attributes:
        phrases: their labels, and how often each is a span of that label where it occurs in the
            training rows: half the time at least.
    """

    kind: ClassVar[Literal["dictionary"]] = "dictionary"

    phrases: Mapping[Phrase, tuple[str, float]]

    @classmethod
    def fit(cls, rows: Iterable[tuple[str, Sequence[Span]]]) -> Self:
        """Fit on texts and their spans; those that begin or end inside a token are left out."""
        texts = [(*_cut(text), spans) for text, spans in rows]
        found: defaultdict[Phrase, Counter[str]] = defaultdict(Counter)
        for words, places, spans in texts:
            starts = {start: first for first, (start, _) in enumerate(places)}
            ends = {end: last + 1 for last, (_, end) in enumerate(places)}
            for span in spans:
                first, stop = starts.get(span.start), ends.get(span.end)
                if first is not None and stop is not None and stop - first <= _LONGEST:
                    found[words[first:stop]][span.label] += 1
        occurrences: Counter[Phrase] = Counter()
        for words, _, _ in texts:
            for first in range(len(words)):
                for stop in range(first + 1, min(first + _LONGEST, len(words)) + 1):
                    if (phrase := words[first:stop]) in found:
                        occurrences[phrase] += 1
        phrases: dict[Phrase, tuple[str, float]] = {}
        for phrase, labels in found.items():
            label, count = min(labels.items(), key=lambda item: (-item[1], item[0]))
            if (share := count / occurrences[phrase]) >= _OFTEN:
                phrases[phrase] = label, share
        return cls(phrases=phrases)

    @property
    def labels(self) -> tuple[str, ...]:
        """Those that any phrase has."""
        return tuple(sorted({label for label, _ in self.phrases.values()}))

    @property
    def nbytes(self) -> int:
        """That its phrases take in memory, or about as much."""
        return sum(100 + 60 * len(phrase) for phrase in self.phrases)

    def spans(self, text: str) -> tuple[Span, ...]:
        """What is found in a text. A span's score is how often its phrase was such a span."""
        words, places = _cut(text)
        found: list[Span] = []
        first = 0
        while first < len(words):
            for stop in range(min(first + _LONGEST, len(words)), first, -1):
                if (known := self.phrases.get(words[first:stop])) is not None:
                    label, score = known
                    start, end = places[first][0], places[stop - 1][1]
                    found.append(
                        Span(text=text[start:end], label=label, start=start, end=end, score=score)
                    )
                    first = stop - 1
                    break
            first += 1
        return tuple(found)

    def files(self) -> tuple[bytes]:
        """What `parse` reads: JSON."""
        phrases = sorted(
            (" ".join(phrase), label, round(score, 4))
            for phrase, (label, score) in self.phrases.items()
        )
        content = {"kind": self.kind, "phrases": phrases}
        return (json.dumps(content, ensure_ascii=False).encode(),)

    @classmethod
    def parse(cls, content: bytes, *, name: str) -> Self:
        """Read what `files` gave.

        Raises:
            AdapterCorrupt: it is malformed.
        """
        try:
            described = json.loads(content)
            phrases = {
                tuple(phrase.split(" ")): (label, float(score))
                for phrase, label, score in described["phrases"]
            }
            if described["kind"] != cls.kind:
                raise ValueError(f"it is no {cls.kind}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterCorrupt(
                f"The floor in {name} cannot be read: {error}.", hint="Train the task again."
            ) from None
        return cls(phrases=phrases)


def _cut(text: str) -> tuple[Phrase, list[tuple[int, int]]]:
    places = extents(text)
    return tuple(text[start:end].casefold() for start, end in places), places
