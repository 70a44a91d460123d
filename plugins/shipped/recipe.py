"""Recipes: what an adapter is trained on, and how."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gptflow.training.data.source import Kind

PLUGINS = Path(__file__).resolve().parents[1]

MOST = 5 << 20
"""Bytes of an adapter that is shipped."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A file of rows of a public data set.

    Attributes:
        name, licence: of the data set, for the model card.
        labels: by head, the field that holds its label.
    """

    path: Path
    split: Literal["train", "dev", "test"]
    name: str
    licence: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a shipped adapter is made.

    Attributes:
        plugin: the folder under `plugins/`.
        prepare: writes the rows, given the folder of the data sets and one to write to.
        settings: of the training, where they are not the defaults.
        gates: by figure, what it has to reach.
    """

    alias: str
    plugin: str
    task: str
    kind: Kind
    prepare: Callable[[Path, Path], Sequence[Rows]]
    settings: Mapping[str, Any]
    gates: Mapping[str, float]

    @property
    def home(self) -> Path:
        """The folder that the plugin ships the adapter in."""
        return PLUGINS / self.plugin / f"gptflow_{self.plugin}" / "adapters" / self.alias


UPPER: Mapping[str, Any] = {
    # Half the layers: an adapter of half the size, in half the time.
    "layers": "upper",
    "rank": 16,
    "precision": "bf16",
    "learning_rate": 4e-4,
    "seed": 0,
}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path
