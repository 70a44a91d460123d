"""Examples: token ids, which of their hidden states are read, and what is to come out."""

from __future__ import annotations

import dataclasses
from typing import Any

from gptflow.request import Request


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One sequence of tokens.

    Attributes:
        ids: as a worker encodes the request's prompt; for `generate`, the answer follows.
        request: the one that a worker makes; None where it is not asked again.
    """

    ids: tuple[int, ...]
    request: Request | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """What is learnt from together: one text, or the candidates of one query.

    Attributes:
        target: what its objective makes of it.
        weight: how much it counts: how many labels, tokens or pairs are learnt from it.
        row: the number of the row that it comes from; of the first one, where there are several.
    """

    texts: tuple[Text, ...]
    target: Any
    weight: float
    row: int

    @property
    def tokens(self) -> int:
        """Of the longest text, times their number: what it takes in a padded batch."""
        return max(map(len, self.texts)) * len(self.texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.texts))
