"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptflow.errors import MissingDependency
from gptflow.training.runs import RunRecord
from gptflow.training.tracking.tracker import described, results


class WandB:
    """Writes what Weights & Biases shows into a run's folder; `wandb sync` uploads it.

    Nothing leaves the machine unless `WANDB_MODE=online` says so. Each sitting writes a folder of
    its own with the same run's name, so that they are one run once they are uploaded.

    Args:
        folder: of the run.

    Raises:
        MissingDependency: wandb is not installed.
    """

    def __init__(self, folder: Path) -> None:
        # It reports its own errors over the network otherwise.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            raise MissingDependency(
                "Tracking with Weights & Biases needs wandb.",
                hint="Type `pip install 'gptflow[wandb]'`.",
            ) from None
        self._wandb: Any = wandb
        self._folder = folder
        self._run: Any = None
        self._step = 0

    def begin(self, record: RunRecord) -> None:
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gptflow"),
            group=record.task,
            id=record.id,
            name=record.id,
            config=described(record),
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            save_code=False,
            # Of this machine and its code, nothing.
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
            ),
        )

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        self._step = step
        self._run.log(dict(figures), step=step)

    def end(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        if record.state == "done":
            self._run.summary.update(results(record))
        if files:
            pictures = {
                name.removesuffix(".png"): self._wandb.Image(str(path))
                for name, path in files.items()
            }
            self._run.log(pictures, step=self._step or record.steps)
        self._run.finish(exit_code=0 if record.state == "done" else 1)
