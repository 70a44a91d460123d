"""Served floors: the simple models that answer in place of heads that are no better than them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptflow.adapter import ClassifyHead, Floor, HeadSpec, TagHead
from gptflow.adapter_info import floor_files
from gptflow.dictionary_tagger import DictionaryTagger
from gptflow.heads import Tag
from gptflow.linear_text import Kind, LinearText
from gptflow.plugins import AnyTask
from gptflow.training.data.rows import LabelledText, Row, TaggedText
from gptflow.training.evaluation import calibration
from gptflow.training.evaluation.floors import LINEAR, fit_dictionary, fit_linear, spread
from gptflow.training.evaluation.labels import LabelAnswers
from gptflow.training.evaluation.summary import Report
from gptflow.training.report import report_labels

MOST_BYTES = 3 << 20
"""Of a simple model's files: an adapter is to stay small."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedFloor:
    """A simple model that answers for a head, or with it.

    Attributes:
        contents: of its files.
        spec: for the manifest.
        ece: on the rows that the head was measured with; None where there are no probabilities.
    """

    contents: tuple[bytes, ...]
    spec: Floor
    ece: float | None = None

    def __str__(self) -> str:
        if self.spec.weight is None:
            return f"{self.spec.kind} is as good, and answers in the adapter's place"
        return f"{self.spec.kind} answers with the adapter, with weight {self.spec.weight:g}"

    def write(self, folder: Path, head: str) -> None:
        """Put it into an adapter's folder."""
        files = floor_files(head, self.spec.kind)
        for name, content in zip(files, self.contents, strict=True):
            (folder / name).write_bytes(content)


def floors_to_serve(
    task: AnyTask,
    reports: Mapping[str, Report],
    specs: Mapping[str, HeadSpec],
    train: Sequence[Any],
    dev: Sequence[Any],
    rows: Sequence[Any],
) -> dict[str, ServedFloor]:
    """By head, the floors that win, fitted again and cut down to a size that can be shipped.

    One that loses to the head by being cut down is left out, and so is the majority label.

    Args:
        rows: those that the reports are about.
    """
    found: dict[str, ServedFloor] = {}
    for name, report in reports.items():
        spec, kind = specs.get(name), report.best_floor
        floor = None
        if not report.floor_wins:
            continue
        if isinstance(spec, ClassifyHead) and kind in LINEAR:
            floor = _linear(task, name, kind, spec, report, train, dev, rows)
        elif isinstance(spec, TagHead) and kind == DictionaryTagger.kind:
            floor = _dictionary(task, train)
        if floor is not None:
            found[name] = floor
    return found


def _linear(
    task: AnyTask,
    name: str,
    kind: Kind,
    spec: ClassifyHead,
    report: Report,
    train: Sequence[Row],
    dev: Sequence[Row],
    rows: Sequence[Row],
) -> ServedFloor | None:
    known = [row for row in _labelled(train, name) if row.labels[name] in spec.labels]
    model = fit_linear(kind, known, name).rounded(MOST_BYTES)
    developed = _answers(model, _labelled(dev, name), spec.labels, name)
    assert developed.probs is not None
    temperature = calibration.fit_temperature(developed.probs, developed.gold)
    measured = _answers(model, _labelled(rows, name), spec.labels, name)
    own = report_labels(measured, title=name, temperature=temperature)
    if own.value(report.primary) < report.value(report.primary):
        return None
    [field] = task.input_type.from_text("text")
    floor = Floor(kind=kind, field=field, temperature=temperature)
    return ServedFloor(model.files(np.float16), floor, own.value("ece"))


def _dictionary(task: AnyTask, train: Sequence[TaggedText]) -> ServedFloor | None:
    tagger = fit_dictionary(train)
    contents = tagger.files()
    if not isinstance(task.head, Tag) or sum(map(len, contents)) > MOST_BYTES:
        return None
    return ServedFloor(contents, Floor(kind=tagger.kind, field=task.head.field))


def _labelled(rows: Sequence[Row], head: str) -> list[LabelledText]:
    return [row for row in rows if isinstance(row, LabelledText) and head in row.labels]


def _answers(
    model: LinearText, rows: Sequence[LabelledText], labels: tuple[str, ...], head: str
) -> LabelAnswers:
    probs = spread(model.probs([row.text for row in rows]), model.labels, labels)
    return LabelAnswers(rows=rows, labels=labels, probs=probs, head=head)
