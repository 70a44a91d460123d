"""Rows: one example each, with the file and the line that it was read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gptflow.heads import Span

Role = Literal["system", "user", "assistant"]

LABEL = "label"
"""The head of data that has only one."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a row stands.

    Attributes:
        line: the first line of it, counted from 1; of a Parquet file, the number of the row.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What all kinds of rows have.

    Attributes:
        id: the data's own name for the row.
        group: rows of one group, such as one user's, go into the same part of a split.
        time: seconds since 1970 UTC; what a temporal split goes by.
        language: as the data says it, such as `zh`.
    """

    origin: Origin
    id: str | None = None
    group: str | None = None
    time: float | None = None
    language: str | None = None

    @property
    def content(self) -> str:
        """The text in which duplicates and personal data are looked for."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """What each part of a stratified split should hold as much of; labels as a rule."""
        return ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText(Row):
    """A text with one label per head.

    Attributes:
        labels: by head; a head that is absent has no label for this row, and is masked there.
    """

    text: str
    labels: Mapping[str, str]

    @property
    def content(self) -> str:
        return self.text

    @property
    def classes(self) -> tuple[str, ...]:
        if len(self.labels) == 1:
            return tuple(self.labels.values())
        return tuple(f"{head}={label}" for head, label in sorted(self.labels.items()))


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """Characters `start:end` of a text: a word, a figure, a mark, or one Chinese character."""

    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaggedText(Row):
    """A text with spans on the borders of its tokens.

    Attributes:
        tags: one per token, in IOB2, whatever scheme the file is in.
    """

    text: str
    tokens: tuple[Token, ...]
    tags: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens' texts."""
        return tuple(self.text[token.start : token.end] for token in self.tokens)

    @property
    def spans(self) -> tuple[Span, ...]:
        """What the tags mark, by character."""
        from gptflow.training.data.tagging import spans_of

        return tuple(
            Span(
                text=self.text[self.tokens[first].start : self.tokens[last - 1].end],
                label=label,
                start=self.tokens[first].start,
                end=self.tokens[last - 1].end,
            )
            for first, last, label in spans_of(self.tags)
        )

    @property
    def content(self) -> str:
        return self.text

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({tag[2:] for tag in self.tags if tag != "O"})) or ("O",)


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says at a time."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue(Row):
    """A conversation, oldest turn first; it is learnt from the assistant's turns."""

    turns: tuple[Turn, ...]

    @property
    def content(self) -> str:
        return "\n".join(turn.text for turn in self.turns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair(Row):
    """How well a candidate fits a query: 1 and 0, or any number where more is better."""

    query: str
    candidate: str
    score: float

    @property
    def content(self) -> str:
        return f"{self.query}\n{self.candidate}"

    @property
    def classes(self) -> tuple[str, ...]:
        return (f"{self.score:g}",) if self.score in (0.0, 1.0) else ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Row):
    """Two answers to one prompt, of which the first is the better one.

    Attributes:
        prompt: what is answered; of a conversation, the user's last turn.
        before: the turns of a conversation that the prompt comes after.
        input: what a task is asked, where the prompt alone does not say it.
    """

    prompt: str
    chosen: str
    rejected: str
    before: tuple[Turn, ...] = ()
    input: Mapping[str, Any] | None = None

    @property
    def asked(self) -> str:
        """All that is answered."""
        return "\n".join((*(turn.text for turn in self.before), self.prompt))

    @property
    def content(self) -> str:
        return f"{self.asked}\n{self.chosen}\n{self.rejected}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlainText(Row):
    """Text to go on with pre-training on."""

    text: str

    @property
    def content(self) -> str:
        return self.text
