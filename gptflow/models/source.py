"""Source: somewhere that a model's files come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gptflow.models.model import SourceKind

Progress = Callable[[str, int, int | None], None]
"""Called with a stage to show, how much of it is done, and of how much (None: not known)."""


class SourceUnavailable(Exception):
    """This source cannot give the model just now; the message says why. The next one is asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """What a source says about the files that it left in the folder."""

    origin: str
    licence: str | None = None


class Source(Protocol):
    """Fills a folder with a model's files. Implementations are frozen data: a catalogue's rows."""

    @property
    def kind(self) -> SourceKind:
        """What `Model.source` says."""

    @property
    def title(self) -> str:
        """How messages call it."""

    @property
    def network(self) -> bool:
        """Whether it is of no use offline."""

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        """Write the model's files into `folder`, which exists and is empty.

        Whatever else it needs on disk goes into `folder` too, and is gone at the end, so that
        a process killed half-way leaves nothing elsewhere.

        Raises:
            SourceUnavailable: it does not answer or does not have the model.
            ModelCorrupt: what it gave is not what it should be.
            UnsupportedModel: it has the model in a form that cannot be used.
            MissingDependency: a package needed to read its form is not installed.
        """
