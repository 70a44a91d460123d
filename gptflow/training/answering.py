"""Answering: an adapter read back, to be asked whole files of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import AdapterMismatch, NotTrainable
from gptflow.models.model import Model
from gptflow.plugins import AnyTask
from gptflow.training.backbone import Backbone
from gptflow.training.evaluation.answers import Answers
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.choice import choose_objective
from gptflow.training.objectives.tags import TagObjective
from gptflow.training.parent import Parent
from gptflow.training.recording import TaskRecorder, choose_adapter
from gptflow.training.settings import TrainingSettings
from gptflow.training.trainer import Trainer


class AdapterAnswers:
    """Answers of one adapter, computed as they were when it was trained.

    Args:
        task: set up, where it needs to be.
        rows: some of what it will be asked, to tell what kind of rows that is.
        context: tokens that workers have for one sequence.

    Raises:
        AdapterMismatch: it does not know all labels that the task has.
        NotTrainable: the task asks no adapter, or is not asked such rows.
    """

    def __init__(
        self,
        adapter: Parent,
        task: AnyTask,
        model: Model,
        rows: Sequence[Any],
        *,
        context: int,
        device: str = "auto",
    ) -> None:
        settings = TrainingSettings.of(**adapter.settings(), device=device)
        vocabulary = Vocabulary.from_folder(model.path)
        most = min(context, model.context) if model.context else context
        recorder = TaskRecorder(task, vocabulary, context=most, adapter=_alias(task, adapter))
        self._objective = choose_objective(recorder, vocabulary, rows[0], settings)
        if isinstance(self._objective, TagObjective):
            self._objective.prepare(rows)
        backbone = Backbone.load(model.path, settings, model_id=model.name)
        heads = TrainedHeads(self._objective.heads, backbone.width)
        fresh = adapter.take_weights(backbone, heads, self._objective)
        if fresh.labels:
            raise AdapterMismatch(
                f"Adapter {adapter.reference} does not know the labels {', '.join(fresh.labels)}.",
                hint="Train it for them: `gptflow train --continue`.",
            )
        self._trainer = Trainer(
            backbone,
            heads,
            self._objective,
            settings,
            Path(),
            train=(),
            dev=(),
            dev_examples=(),
        )

    def __call__(self, rows: Sequence[Any]) -> Mapping[str, Answers]:
        """Answers by head.

        Raises:
            BadLabel: a row has a label that the task does not know.
        """
        examples = self._objective.examples(rows)
        return self._objective.answers(rows, examples, self._trainer.predict(examples))


def _alias(task: AnyTask, adapter: Parent) -> str:
    """What the task calls it: a folder may have any name, unless the task asks several adapters."""
    try:
        return choose_adapter(task)
    except NotTrainable:
        return choose_adapter(task, adapter.alias)
