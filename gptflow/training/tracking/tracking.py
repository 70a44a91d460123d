"""Tracking: all of a run's trackers, none of which can stop it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptflow.errors import ConfigError, GPTFlowError
from gptflow.suggestion import did_you_mean
from gptflow.training import curves
from gptflow.training.runs import Run
from gptflow.training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from gptflow.training.trainer import Update

logger = logging.getLogger(__name__)

ALWAYS = "tensorboard"
TRACKERS = {
    "tensorboard": "tensorboard:TensorBoard",
    "mlflow": "mlflow:MLflow",
    "wandb": "wandb:WandB",
}
"""By the name that a setting gives it, where a tracker is; it is imported when it is asked for."""


def make(name: str, folder: Path) -> Tracker:
    """A tracker of the run in a folder.

    Raises:
        ConfigError: there is none of that name.
        MissingDependency: what it needs is not installed.
    """
    if name not in TRACKERS:
        raise ConfigError(
            f"There is no tracker {name!r}.",
            hint=did_you_mean(name, TRACKERS) or f"There are {', '.join(TRACKERS)}.",
        )
    module, _, kind = TRACKERS[name].partition(":")
    found = importlib.import_module(f"gptflow.training.tracking.{module}")
    tracker: Tracker = getattr(found, kind)(folder)
    return tracker


def require(names: Sequence[str]) -> None:
    """Find out before a run begins whether it can be tracked.

    Raises:
        ConfigError, MissingDependency: see `make`.
    """
    for name in dict.fromkeys((ALWAYS, *names)):
        make(name, Path())


class Tracking:
    """A run's trackers: TensorBoard, and those that its record names.

    Args:
        note: is told of a tracker that fails; it is called no more, and the run goes on.

    Raises:
        ConfigError, MissingDependency: see `make`.
    """

    def __init__(self, run: Run, note: Callable[[str], None] = lambda message: None) -> None:
        self._run = run
        self._note = note
        names = dict.fromkeys((ALWAYS, *run.record.track))
        self._trackers = {name: make(name, run.folder) for name in names}

    @contextlib.contextmanager
    def sitting(self) -> Iterator[None]:
        """Begin a sitting of the run, and end it however it ends."""
        record = self._run.record
        self._tell(lambda tracker: tracker.begin(record))
        try:
            yield
        finally:
            with contextlib.suppress(GPTFlowError):  # it cannot be read: what it was will do
                record = self._run.record
            files = pictures(self._run.folder) if record.state == "done" else {}
            self._tell(lambda tracker: tracker.end(record, files))

    def update(self, update: Update) -> None:
        """Tell of a step."""
        figures = {
            "train/loss": update.loss,
            "train/learning_rate": update.learning_rate,
            "train/tokens_per_s": update.tokens_per_s,
            "train/epoch": update.epoch,
        }
        figures |= {f"dev/{name}": value for name, value in (update.figures or {}).items()}
        self._tell(lambda tracker: tracker.update(update.step, figures))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with warnings.catch_warnings():
                    # What these libraries' own dependencies have deprecated is no news to users.
                    warnings.simplefilter("ignore")
                    call(tracker)
            except Exception as error:  # noqa: BLE001  whatever it is, the training matters more
                del self._trackers[name]
                logger.warning("the tracker %s failed: %s", name, error)
                told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                self._note(f"warning: {name} shows no more of this run: {told}")


def pictures(folder: Path) -> Mapping[str, Path]:
    """A run's plots by name: `loss.png`, `report-label/confusion.png` and so on."""
    found = [folder / curves.FILE, *sorted(folder.glob("report-*/*.png"))]
    return {str(path.relative_to(folder)): path for path in found if path.is_file()}
