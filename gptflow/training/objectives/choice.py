"""Which objective goes with a task's head and the rows at hand."""

from __future__ import annotations

from typing import Any

from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import NotTrainable
from gptflow.heads import Head
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    PlainText,
    Preference,
    Row,
    ScoredPair,
    TaggedText,
)
from gptflow.training.data.source import Kind
from gptflow.training.objectives.dialogues import DialogueObjective, conversation
from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.objectives.objective import Objective
from gptflow.training.objectives.preferences import PreferenceObjective, asked_of
from gptflow.training.objectives.scores import ScoreObjective
from gptflow.training.objectives.tags import TagObjective
from gptflow.training.recording import TaskRecorder
from gptflow.training.settings import TrainingSettings

TRAINED: tuple[Kind, ...] = ("labels", "tags", "scores", "dialogues", "preferences")
"""Kinds of rows that a head can be trained on."""


def choose_objective(
    recorder: TaskRecorder, vocabulary: Vocabulary, row: Row, settings: TrainingSettings
) -> Objective[Any]:
    """The objective for rows such as this one.

    Raises:
        NotTrainable: no head is trained on such rows, or not the task's.
    """
    match row:
        case LabelledText(text=text):
            return LabelObjective(recorder, vocabulary, _head(recorder, text), settings)
        case TaggedText(text=text):
            return TagObjective(recorder, vocabulary, _head(recorder, text), settings)
        case ScoredPair():
            head = recorder.task.head
            assert head is not None  # it names the adapter
            return ScoreObjective(recorder, vocabulary, head, settings)
        case Dialogue(turns=turns):
            answered = next((i for i, t in enumerate(turns) if i and t.role == "assistant"), None)
            asked = turns[: answered or 1]
            head = _head(recorder, conversation(recorder.task, asked))
            return DialogueObjective(recorder, vocabulary, head, settings)
        case Preference():
            head = _head(recorder, asked_of(recorder.task, row))
            return PreferenceObjective(recorder, vocabulary, head, settings)
        case PlainText():
            raise NotTrainable(
                "Raw text is for no task.", hint="Train on it with `gptflow pretrain`."
            )
    raise NotTrainable(
        f"No head is trained on {type(row).__name__} rows.",
        hint=f"Give rows of {', '.join(TRAINED)}; `--kind` says what a file holds.",
    )


def _head(recorder: TaskRecorder, value: Any) -> Head:
    return recorder.record([value])[0].head
