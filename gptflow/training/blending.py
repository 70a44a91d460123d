"""Blending: a head and a simple model that answer together, where the development split prefers it.

Their log-probabilities are added, the simple model's with a weight: the logarithmic opinion pool
(Genest and Zidek 1986, "Combining Probability Distributions"). A model of words and word pairs is
sure where a word decides alone, which a small transformer learns from many more rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from gptflow.adapter import Floor
from gptflow.linear_text import LinearText
from gptflow.plugins import AnyTask
from gptflow.training.evaluation.floors import LINEAR, fit_linear
from gptflow.training.example import Example
from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.objectives.objective import Objective
from gptflow.training.served_floors import ServedFloor

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Of the simple model's log-probabilities; the head's have 1."""

FEWEST = 100
"""Rows of a development split that can tell."""

MOST_BYTES = 112 << 10
"""Of a simple model's files: most of what it knows is in few terms."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Blend:
    model: LinearText
    weight: float


class Blending:
    """The simple models that answer with the heads of an objective; none for most objectives."""

    def __init__(self, objective: Objective[Any], blends: Mapping[str, _Blend] | None = None):
        self._objective = objective
        self._blends = blends or {}

    @classmethod
    def find(
        cls,
        objective: Objective[Any],
        train: Sequence[Any],
        dev: Sequence[Any],
        examples: Sequence[Example],
        outputs: Sequence[Any],
    ) -> Self:
        """By head, the simple model and the weight that the development split finds best, if any.

        Args:
            examples: of the development split; `outputs` are what the trained heads say.
        """
        blends: dict[str, _Blend] = {}
        if not isinstance(objective, LabelObjective) or len(dev) < FEWEST:
            return cls(objective)
        best = {
            name: answers.metrics()[objective.primary]
            for name, answers in objective.answers(dev, examples, outputs).items()
        }
        for name, kind in itertools.product(best, LINEAR):
            labels = objective.labels[name]
            known = [row for row in train if row.labels.get(name) in labels]
            model = fit_linear(kind, known, name).rounded(MOST_BYTES)
            said = _log_probs(model, dev, labels)
            for weight in WEIGHTS:
                answers = objective.answers(dev, examples, _add(outputs, name, weight * said))[name]
                if (figure := answers.metrics()[objective.primary]) > best[name]:
                    best[name], blends[name] = figure, _Blend(model, weight)
        return cls(objective, blends)

    def __call__(self, rows: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
        """What heads and simple models say of rows together; `outputs` are what the heads say."""
        for name, blend in self._blends.items():
            assert isinstance(self._objective, LabelObjective)
            said = _log_probs(blend.model, rows, self._objective.labels[name])
            outputs = _add(outputs, name, blend.weight * said)
        return outputs

    def floors(self, task: AnyTask) -> dict[str, ServedFloor]:
        """For an adapter, by head."""
        found = {}
        for name, blend in self._blends.items():
            [field] = task.input_type.from_text("text")
            floor = Floor(kind=blend.model.kind, field=field, weight=blend.weight)
            found[name] = ServedFloor(blend.model.files(np.float16), floor)
        return found


def _log_probs(model: LinearText, rows: Sequence[Any], labels: Sequence[str]) -> torch.Tensor:
    """`[rows, labels]`."""
    return torch.tensor([model.log_probs(row.text, labels) for row in rows])


def _add(outputs: Sequence[Any], name: str, logits: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Outputs with logits added to those of one head, row by row."""
    return [
        {**output, name: output[name] + own} for output, own in zip(outputs, logits, strict=True)
    ]
