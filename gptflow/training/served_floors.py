"""Served floors: the simple models that answer in place of heads that are no better than them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gptflow.adapter import ClassifyHead, Floor, HeadSpec
from gptflow.adapter_info import floor_files
from gptflow.linear_text import LinearText
from gptflow.plugins import AnyTask
from gptflow.training.data.rows import LabelledText, Row
from gptflow.training.evaluation import calibration
from gptflow.training.evaluation.floors import LINEAR, fit_linear, spread
from gptflow.training.evaluation.labels import LabelAnswers
from gptflow.training.evaluation.summary import Report
from gptflow.training.report import report_labels

MOST_BYTES = 3 << 20
"""Of a simple model's numbers, in half precision: an adapter is to stay small."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedFloor:
    """A simple model that answers for a head.

    Attributes:
        spec: for the manifest.
        report: its figures on the rows that the head was measured with.
    """

    model: LinearText
    spec: Floor
    report: Report

    def write(self, folder: Path, head: str) -> None:
        """Put it into an adapter's folder, where it takes half precision."""
        for name, content in zip(floor_files(head), self.model.files(np.float16), strict=True):
            (folder / name).write_bytes(content)


def floors_to_serve(
    task: AnyTask,
    reports: Mapping[str, Report],
    specs: Mapping[str, HeadSpec],
    train: Sequence[Row],
    dev: Sequence[Row],
    rows: Sequence[Row],
) -> dict[str, ServedFloor]:
    """By head, the floors that win, fitted again and cut down to a size that can be shipped.

    One that loses to the head by being cut down is left out, and so is the majority label.

    Args:
        rows: those that the reports are about.
    """
    found: dict[str, ServedFloor] = {}
    for name, report in reports.items():
        spec = specs.get(name)
        kind = report.best_floor
        if not report.floor_wins or kind not in LINEAR or not isinstance(spec, ClassifyHead):
            continue
        known = [row for row in _labelled(train, name) if row.labels[name] in spec.labels]
        model = _rounded(fit_linear(kind, known, name))
        developed = _answers(model, _labelled(dev, name), spec.labels, name)
        assert developed.probs is not None
        temperature = calibration.fit_temperature(developed.probs, developed.gold)
        measured = _answers(model, _labelled(rows, name), spec.labels, name)
        own = report_labels(measured, title=name, temperature=temperature)
        if own.value(report.primary) >= report.value(report.primary):
            [field] = task.input_type.from_text("text")
            floor = Floor(kind=kind, field=field, temperature=temperature)
            found[name] = ServedFloor(model, floor, own)
    return found


def _labelled(rows: Sequence[Row], head: str) -> list[LabelledText]:
    return [row for row in rows if isinstance(row, LabelledText) and head in row.labels]


def _answers(
    model: LinearText, rows: Sequence[LabelledText], labels: tuple[str, ...], head: str
) -> LabelAnswers:
    probs = spread(model.probs([row.text for row in rows]), model.labels, labels)
    return LabelAnswers(rows=rows, labels=labels, probs=probs, head=head)


def _rounded(model: LinearText) -> LinearText:
    """As it will be read from the adapter's folder."""
    model = model.trimmed(MOST_BYTES // (2 * len(model.labels)))
    return LinearText.parse(*model.files(np.float16), name="memory")
