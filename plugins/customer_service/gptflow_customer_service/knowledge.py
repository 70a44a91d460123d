"""The knowledge base: questions with stored answers, each in one language."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptflow.errors import ConfigError

Locale = Literal["en", "zh"]
LOCALES: tuple[Locale, ...] = ("en", "zh")

Category = Literal[
    "orders",
    "delivery",
    "returns",
    "refunds",
    "payments",
    "products",
    "cards",
    "transfers",
    "accounts",
    "rates",
    "branches",
    "privacy",
]


class Entry(BaseModel):
    """A question, other ways to ask it, and the answer that is given word for word.

    Attributes:
        id: `topic.locale`; entries of one topic say the same in different languages.
        synthetic: the entry was made up and describes no real company.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9-]+\.(en|zh)$")
    locale: Locale
    category: Category
    question: str = Field(min_length=1)
    paraphrases: tuple[str, ...] = ()
    answer: str = Field(min_length=1)
    synthetic: bool = False

    @property
    def topic(self) -> str:
        return self.id.rpartition(".")[0]

    @property
    def questions(self) -> tuple[str, ...]:
        """Every stored way to ask."""
        return (self.question, *self.paraphrases)


class Knowledge:
    """All entries, by id, in the order of the file."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            if entry.id in self._entries:
                raise ConfigError(f"The knowledge base has two entries {entry.id!r}.")
            self._entries[entry.id] = entry

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSONL file, one entry a line.

        Raises:
            ConfigError: the file is missing or a line is malformed, with its number.
        """
        entries = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"Knowledge base {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    entries.append(Entry.model_validate(json.loads(line)))
                except (ValidationError, ValueError) as error:
                    raise ConfigError(f"{path}, line {number}: {error}") from error
        return cls(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, entry_id: str) -> Entry:
        return self._entries[entry_id]

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    def of(self, locale: Locale) -> tuple[Entry, ...]:
        """The entries in one language."""
        return tuple(entry for entry in self._entries.values() if entry.locale == locale)

    def translated(self, entry: Entry, locale: Locale) -> Entry:
        """The entry of the same topic in another language; the entry itself without one."""
        return self._entries.get(f"{entry.topic}.{locale}", entry)
