"""Fields: the key-value part of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptflow.errors import ModelCorrupt


class Fields:
    """The file's key-value part, read on demand and once: the vocabulary takes a while.

    Args:
        file: its name, for messages.
        readers: by key, what reads the value.
    """

    def __init__(self, file: str, readers: dict[str, Any]) -> None:
        self.file = file
        self._readers = readers
        self._values: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._readers else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._readers:
            raise ModelCorrupt(f"{self.file} lacks {key}.")
        if key not in self._values:
            self._values[key] = self._readers[key]()
        return self._values[key]
