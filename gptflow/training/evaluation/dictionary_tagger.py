"""The floor of tagging: what a phrase was in the training rows, it is here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from gptflow.training.data.rows import TaggedText
from gptflow.training.data.tagging import Extent, spans_of, tags_of

_LONGEST = 8
"""Tokens in a phrase that is looked up."""


class DictionaryTagger:
    """Looks up phrases, the longest first, from left to right, without case.

    A phrase counts as a span of its most frequent label if, where it occurs in the training
    rows, it is such a span at least half the time.
    """

    def __init__(self, train: Sequence[TaggedText]) -> None:
        spans: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for row in train:
            words = _words(row)
            for first, stop, label in spans_of(row.tags):
                if stop - first <= _LONGEST:
                    spans[words[first:stop]][label] += 1
        occurrences: Counter[tuple[str, ...]] = Counter()
        for row in train:
            words = _words(row)
            for first in range(len(words)):
                for stop in range(first + 1, min(first + _LONGEST, len(words)) + 1):
                    if (phrase := words[first:stop]) in spans:
                        occurrences[phrase] += 1
        self._labels: dict[tuple[str, ...], str] = {}
        for phrase, labels in spans.items():
            label, often = min(labels.items(), key=lambda item: (-item[1], item[0]))
            if 2 * often >= occurrences[phrase]:
                self._labels[phrase] = label

    def tag(self, row: TaggedText) -> tuple[str, ...]:
        """One tag in IOB2 per token."""
        words = _words(row)
        found: list[Extent] = []
        first = 0
        while first < len(words):
            for stop in range(min(first + _LONGEST, len(words)), first, -1):
                if (label := self._labels.get(words[first:stop])) is not None:
                    found.append((first, stop, label))
                    first = stop - 1
                    break
            first += 1
        return tags_of(found, len(words))


def _words(row: TaggedText) -> tuple[str, ...]:
    return tuple(word.casefold() for word in row.words)
