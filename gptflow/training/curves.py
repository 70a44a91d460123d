"""Curves: a run's losses and figures as a picture, and those of several runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptflow.errors import TrainingError
from gptflow.training.evaluation.plots import png, shorten
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.runs import Run

FILE = "loss.png"
"""In a run's folder, once it is done."""

_NAME = 60
"""Characters of a run's name that are shown."""

_LEGEND = 12
"""Of more runs than this, a legend would hide the curves."""


def draw(runs: Sequence[Run], names: Sequence[str] = ()) -> bytes:
    """The curves of one run or more as PNG: training losses above, development figures below.

    Args:
        names: for the legend; the runs' own where there are none.

    Raises:
        TrainingError: a run has made no step yet.
        MissingDependency: matplotlib is not installed.
    """
    logs = {}
    for run, name in itertools.zip_longest(runs, names):
        logs[name or run.folder.name] = log = run.log()
        if not log:
            raise TrainingError(
                f"The run {run.folder.name} has made no step yet: there is nothing to draw.",
                hint=f"`gptflow runs show {run.folder.name}` shows how it goes.",
            )
    primary = next((run.record.primary for run in runs if run.record.primary), "")
    return png(lambda figure: _draw(figure, logs, primary))


def write(run: Run) -> Path:
    """Draw a run beside its log.

    Raises:
        TrainingError: it has made no step yet, or the picture cannot be written.
        MissingDependency: matplotlib is not installed.
    """
    path = run.folder / FILE
    content = draw([run])
    try:
        write_whole(path, content)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def smooth(losses: Sequence[float]) -> np.ndarray[Any, Any]:
    """Each step's mean with those before it, a twentieth of the run at most."""
    span = max(1, len(losses) // 20)
    sums = np.cumsum([0.0, *losses])
    upper = np.arange(1, len(losses) + 1)
    lower = np.maximum(upper - span, 0)
    means: np.ndarray[Any, Any] = (sums[upper] - sums[lower]) / (upper - lower)
    return means


def _draw(figure: Any, logs: Mapping[str, list[dict[str, Any]]], primary: str) -> None:
    figure.set_size_inches(8, 6)
    losses, figures = figure.subplots(2, 1, sharex=True)
    shown = _shown(logs, primary)
    for name, log in logs.items():
        # Runs with other batches make other steps of the same rows.
        epochs = [record["epoch"] for record in log]
        found = [record["loss"] for record in log]
        (line,) = losses.plot(epochs, smooth(found), label=shorten(name, _NAME))
        if len(logs) == 1:
            losses.plot(epochs, found, color=line.get_color(), alpha=0.3, linewidth=0.8)
        for style, figure_name in zip(("o-", "s--", "^:"), shown, strict=False):
            points = [
                (record["epoch"], record["figures"][figure_name])
                for record in log
                if figure_name in (record["figures"] or {})
            ]
            if points:
                colour = line.get_color() if len(logs) > 1 else None
                figures.plot(*zip(*points, strict=True), style, color=colour, label=figure_name)
    losses.set(ylabel="training loss")
    figures.set(xlabel="epoch", ylabel="development split")
    for axes in (losses, figures):
        axes.grid(alpha=0.3)
    if len(logs) == 1:
        losses.set_title(shorten(next(iter(logs)), _NAME))
        if shown:
            figures.legend()
    else:
        figures.set(ylabel=f"{', '.join(shown)} (development split)")
        if len(logs) <= _LEGEND:
            losses.legend(fontsize="small")


def _shown(logs: Mapping[str, list[dict[str, Any]]], primary: str) -> list[str]:
    """The figures to draw: the one that decides, and of one run two more beside it."""
    names = dict.fromkeys(n for log in logs.values() for r in log for n in r["figures"] or {})
    first = [primary] if primary in names else []
    return [*first, *(name for name in names if name not in first)][: 3 if len(logs) == 1 else 1]
