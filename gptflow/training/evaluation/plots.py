"""Pictures: the confusion matrix and the reliability diagram, as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gptflow.errors import MissingDependency
from gptflow.training.evaluation.summary import Calibration, Confusion, Report

CONFUSION = "confusion.png"
RELIABILITY = "reliability.png"

_MOST_LABELS = 30
"""Of more labels than this, those that are most often taken for others are shown."""


def pictures(report: Report) -> Mapping[str, bytes]:
    """The report's pictures by file name.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    found: dict[str, bytes] = {}
    if (confusion := report.confusion) is not None:
        found[CONFUSION] = png(lambda figure: _draw_confusion(figure, confusion))
    if (calibration := report.calibration) is not None:
        found[RELIABILITY] = png(lambda figure: _draw_reliability(figure, calibration))
    return found


def png(draw: Callable[[Any], None]) -> bytes:
    """What a function draws on a figure of matplotlib, as PNG.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency(
            "Pictures need matplotlib.", hint="Type `pip install 'gptflow[train]'`."
        ) from None
    # No pyplot: it keeps figures alive and asks for a screen.
    figure = Figure(layout="constrained")
    draw(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Labels may be in scripts that matplotlib's own font has no glyphs for.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Without the version of matplotlib in it, the same figures give the same file.
        figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def _draw_confusion(figure: Any, confusion: Confusion) -> None:
    counts = np.array(confusion.counts)[:, : len(confusion.labels)]
    shown = np.arange(len(confusion.labels))
    if len(shown) > _MOST_LABELS:
        off = counts.sum(axis=1) + counts.sum(axis=0) - 2 * np.diagonal(counts)
        shown = np.sort(np.argsort(-off, kind="stable")[:_MOST_LABELS])
    # Shares of each right label, so that a rare one is seen as well.
    totals = np.maximum(np.array(confusion.counts).sum(axis=1, keepdims=True), 1)
    shares = (counts / totals)[np.ix_(shown, shown)]
    names = [shorten(confusion.labels[place]) for place in shown]
    size = 3.5 + 0.28 * len(shown)
    figure.set_size_inches(size + 0.8, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="right")
    if len(names) <= 12:
        for row, line in enumerate(counts[np.ix_(shown, shown)]):
            for column, count in enumerate(line):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the right label's rows")


def _draw_reliability(figure: Any, calibration: Calibration) -> None:
    figure.set_size_inches(5, 5)
    axes = figure.add_subplot()
    total = sum(each.count for each in calibration.bins) or 1
    width = 1 / len(calibration.bins)
    for each in calibration.bins:
        if each.accuracy is not None:
            axes.bar(each.low, each.accuracy, width, align="edge", color="tab:blue", alpha=0.7)
        axes.bar(each.low, each.count / total, width, align="edge", color="0.6", alpha=0.6)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy (grey: share of rows)")
    axes.set_title(f"ECE {calibration.ece:.4f} at temperature {calibration.temperature:.3f}")


def shorten(label: str, most: int = 24) -> str:
    """A name that fits a picture."""
    shown = label if len(label) <= most else label[: most - 1] + "…"
    return shown.replace("$", r"\$")  # a dollar sign would begin mathematics
