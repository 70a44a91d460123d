"""A head and a simple model that answer together, where the development split finds that better."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptflow.engine.tokenizer import Vocabulary
from gptflow.training import blending
from gptflow.training.blending import Blending
from gptflow.training.data.rows import LABEL, LabelledText, Origin
from gptflow.training.objectives.choice import choose_objective
from gptflow.training.recording import TaskRecorder
from gptflow.training.settings import TrainingSettings

pytest.importorskip("sklearn")


@pytest.fixture
def vocabulary(tiny: SimpleNamespace) -> Vocabulary:
    return Vocabulary.from_folder(tiny.model().path)


def rows_of(tiny: SimpleNamespace, told: bool) -> list[LabelledText]:
    """Texts that hold a word of their label, or none."""
    return [
        LabelledText(
            origin=Origin("rows", n),
            text=f"of {label if told else 'it'} {n}",
            labels={LABEL: label},
        )
        for n, label in enumerate(tiny.TOPICS * 10)
    ]


def made(
    tiny: SimpleNamespace, vocabulary: Vocabulary, rows: list[LabelledText], sure: float
) -> tuple[Any, Any, Any]:
    """The objective, its examples, and outputs of a head that is right about half of the rows."""
    task = tiny.Topic()
    task.check()
    recorder = TaskRecorder(task, vocabulary, context=256)
    objective = choose_objective(recorder, vocabulary, rows[0], TrainingSettings.of())
    outputs = []
    for n, row in enumerate(rows):
        right = tiny.TOPICS.index(row.labels[LABEL])
        logits = torch.zeros(len(tiny.TOPICS))
        logits[right if n % 2 else (right + 1) % len(tiny.TOPICS)] = sure if n % 2 else 0.1
        outputs.append({LABEL: logits})
    return objective, objective.examples(rows), outputs


def test_together_they_are_right_where_either_is(
    tiny: SimpleNamespace, vocabulary: Vocabulary
) -> None:
    told, untold = rows_of(tiny, True), rows_of(tiny, False)
    # The simple model knows every other row, and the head those in between.
    dev = [untold[n] if n % 2 else told[n] for n in range(len(told))]
    objective, examples, outputs = made(tiny, vocabulary, dev, sure=5.0)
    found = Blending.find(objective, told, dev, examples, outputs)
    alone = objective.figures(dev, examples, outputs)[objective.primary]
    together = objective.figures(dev, examples, found(dev, outputs))[objective.primary]
    assert alone < 0.7
    assert together > alone + 0.2
    [(name, floor)] = found.floors(tiny.Topic()).items()
    assert (name, floor.spec.field) == (LABEL, "text")
    assert floor.spec.weight in blending.WEIGHTS
    assert sum(map(len, floor.contents)) <= blending.MOST_BYTES
    assert "answers with the adapter" in str(floor)


def test_the_head_answers_alone_where_nothing_makes_it_better(
    tiny: SimpleNamespace, vocabulary: Vocabulary
) -> None:
    rows = rows_of(tiny, False)
    objective, examples, _ = made(tiny, vocabulary, rows, sure=5.0)
    right = [
        {LABEL: 5.0 * torch.eye(len(tiny.TOPICS))[tiny.TOPICS.index(row.labels[LABEL])]}
        for row in rows
    ]
    found = Blending.find(objective, rows, rows, examples, right)
    assert found.floors(tiny.Topic()) == {}
    assert found(rows, right) is right


def test_few_rows_tell_nothing(tiny: SimpleNamespace, vocabulary: Vocabulary) -> None:
    told = rows_of(tiny, True)
    dev = told[: blending.FEWEST - 1]
    objective, examples, outputs = made(tiny, vocabulary, dev, sure=5.0)
    assert Blending.find(objective, told, dev, examples, outputs).floors(tiny.Topic()) == {}
