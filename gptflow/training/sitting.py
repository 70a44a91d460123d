"""Sittings: the times that a run is trained for, and whoever hears how it goes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from gptflow.errors import GPTFlowError
from gptflow.training.processes import Processes
from gptflow.training.runs import Run
from gptflow.training.tracking.tracking import Tracking
from gptflow.training.trainer import Update


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Whom to tell how it goes.

    Attributes:
        update: after each step. An exception that it raises stops the run, which can be resumed.
        note: of each stage, in words.
        lower: of the activations of frozen layers, tokens that are done, and of how many.
        stage: of another stage, its name, how much is done, of how much.
    """

    update: Callable[[Update], None] = lambda update: None
    note: Callable[[str], None] = lambda message: None
    lower: Callable[[int, int], None] = lambda done, total: None
    stage: Callable[[str, int, int], None] = lambda name, done, total: None


@contextlib.contextmanager
def sitting(run: Run, watch: Watch, processes: Processes) -> Iterator[Watch]:
    """A run's record and its trackers hear how it goes, and how it ends, from the first process.

    Yields:
        whom the training is to tell.
    """
    if not processes.first:
        yield watch
        return
    tracked = Tracking(run, watch.note)
    run.update(state="running", error=None)

    def update(made: Update) -> None:
        tracked.update(made)
        watch.update(made)

    with tracked.sitting():
        try:
            yield dataclasses.replace(watch, update=update)
        except GPTFlowError as error:
            with contextlib.suppress(GPTFlowError):
                run.update(state="failed", error=f"[{error.code}] {error}")
            raise
