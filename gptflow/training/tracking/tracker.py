"""Tracker: what a run tells of itself, to whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gptflow.training.runs import RunRecord


class Tracker(Protocol):
    """Shows one run. A run that is resumed begins it anew, with the same record.

    Any method may raise: the run warns, goes on, and calls the tracker no more. Files are pictures,
    and figures are numbers: no tracker is given a row's text, or a folder of this machine.
    """

    def begin(self, record: RunRecord) -> None:
        """A sitting of the run begins: its first, or it is resumed."""

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """After a step.

        Args:
            step: from 1; after a kill, steps come again that were not in the checkpoint.
            figures: `train/loss`, `train/learning_rate`, `train/tokens_per_s` and `train/epoch`;
                `dev/NAME` where the development split was evaluated.
        """

    def end(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        """The sitting is over.

        Args:
            record: `done`, with its figures; `failed`; or `running` where it was stopped.
            files: plots by name, such as `loss.png`; none unless it is done.
        """


def described(record: RunRecord) -> dict[str, str | int | float | bool]:
    """Of a run, what trackers show as its settings: plain values, nothing of this machine."""
    data = {f"data.{n}": f"{f.split}: {f.name}" for n, f in enumerate(record.data)}
    hashes = {f"data.{n}.sha256": f.sha256 for n, f in enumerate(record.data)}
    settings = record.settings.model_dump(mode="json", exclude_none=True)
    # A model may be given as a folder.
    model = record.model.rstrip("/").rpartition("/")[2]
    told = {"task": record.task, "adapter": record.adapter, "model": model, "code": record.code}
    return told | data | hashes | settings


def results(record: RunRecord) -> dict[str, float]:
    """The figures of what came of a run, and of the best simple models, as `floor/NAME`."""
    found = {f"result/{name}": metric.value for name, metric in record.metrics.items()}
    floors = {
        f"floor/{name}": metric.floor
        for name, metric in record.metrics.items()
        if metric.floor is not None
    }
    return found | floors
