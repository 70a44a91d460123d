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
        found = cls(objective)
        if not isinstance(objective, LabelObjective) or len(dev) < FEWEST:
            return found
        best = {
            name: answers.metrics()[objective.primary]
            for name, answers in objective.answers(dev, examples, outputs).items()
        }
        for name, kind in itertools.product(best, LINEAR):
            labels = objective.labels[name]
            known = [row for row in train if row.labels.get(name) in labels]
            model = fit_linear(kind, known, name).rounded(MOST_BYTES)
            for weight in WEIGHTS:
                tried = cls(objective, {name: _Blend(model, weight)})
                answers = objective.answers(dev, examples, tried(dev, outputs))[name]
                if (figure := answers.metrics()[objective.primary]) > best[name]:
                    best[name] = figure
                    found = cls(objective, {**found._blends, **tried._blends})
        return found

    def __call__(self, rows: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
        """What heads and simple models say of rows together; `outputs` are what the heads say."""
        if not self._blends:
            return outputs
        assert isinstance(self._objective, LabelObjective)
        said = {
            name: torch.tensor(
                [blend.model.log_probs(row.text, self._objective.labels[name]) for row in rows]
            )
            for name, blend in self._blends.items()
        }
        return [
            {
                name: logits + self._blends[name].weight * said[name][number]
                if name in said
                else logits
                for name, logits in output.items()
            }
            for number, output in enumerate(outputs)
        ]

    def floors(self, task: AnyTask) -> dict[str, ServedFloor]:
        """For an adapter, by head."""
        found = {}
        for name, blend in self._blends.items():
            [field] = task.input_type.from_text("text")
            floor = Floor(kind=blend.model.kind, field=field, weight=blend.weight)
            found[name] = ServedFloor(blend.model.files(np.float16), floor)
        return found
