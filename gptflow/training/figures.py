"""Figures: what an adapter ships of its reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptflow.adapter import Metric
from gptflow.training.evaluation.summary import Report
from gptflow.training.objectives.objective import Objective
from gptflow.training.served_floors import ServedFloor

MOST_LABELS = 50
"""Of a confusion matrix that is shipped."""


def without_rows(report: Report) -> Report:
    """A report without the rows' texts, this machine's folders, and matrices that nobody reads."""
    report = report.without_texts()
    if report.confusion is not None and len(report.confusion.labels) > MOST_LABELS:
        report = report.model_copy(update={"confusion": None})
    worst = (w.model_copy(update={"where": w.where.rpartition("/")[2]}) for w in report.worst)
    return report.model_copy(update={"worst": tuple(worst)})


def shipped_metrics(
    objective: Objective[Any],
    reports: Mapping[str, Report],
    figures: Mapping[str, float],
    floors: Mapping[str, ServedFloor],
) -> dict[str, Metric]:
    """Figures for the manifest, each with that of the best floor where there is one."""
    primary = objective.primary
    found: dict[str, Metric] = {}
    reached: list[float] = []
    for name, report in reports.items():
        best = report.floors.get(report.best_floor or "", {})
        for figure, measured in report.metrics.items():
            floor = best[figure].value if figure in best else None
            if measured.value is not None:
                found[figure if len(reports) == 1 else f"{name}.{figure}"] = Metric(
                    value=measured.value, floor=floor
                )
            if figure == primary and floor is not None:
                reached.append(floor)
        if report.calibration is not None:
            key = "ece" if len(reports) == 1 else f"{name}.ece"
            served = floors[name].ece if name in floors else None
            found[key] = Metric(
                value=report.calibration.ece if served is None else served, floor=served
            )
    for figure, value in figures.items():
        if figure not in found and value == value:
            mean = sum(reached) / len(reached) if figure == primary and reached else None
            found[figure] = Metric(value=value, floor=mean)
    return found
