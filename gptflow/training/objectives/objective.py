"""Objective: what the trainer asks of each kind of head."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from gptflow.adapter import HeadSpec
from gptflow.engine.tokenizer import Vocabulary
from gptflow.heads import Raw
from gptflow.request import Request
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import Row
from gptflow.training.evaluation.answers import Answers
from gptflow.training.evaluation.summary import Report
from gptflow.training.example import Example
from gptflow.training.heads import TrainedHeads
from gptflow.training.recording import TaskRecorder

RowT = TypeVar("RowT", bound=Row)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A sitting of a run before its first step; the weights are those that the run began with.

    Attributes:
        folder: of the run.
        predict: the objective's outputs for examples, in their order.
        rows: those that the run's figures are of in the end: test, or dev where there is none.
        measured: their examples.
        note: tells whoever watches.
        progress: tells them of a stage how much is done, of how much.
    """

    folder: Path
    backbone: Backbone
    predict: Callable[[Sequence[Example]], list[Any]]
    train: Sequence[Example]
    dev: Sequence[Example]
    rows: Sequence[Any]
    measured: Sequence[Example]
    note: Callable[[str], None]
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None


class Objective(abc.ABC, Generic[RowT]):
    """One kind of head on one kind of rows.

    Args:
        recorder: of the task that is trained; None where there is no task.

    Attributes:
        heads: by name, the rows of each head's weight; none for `Generate`.
        primary: the figure of the development split that decides which weights are the best;
            more is better.
        staged: whether rows are kept for a run that goes on from this one, and measured then.
        warnings: what else to know about what was trained, in words; all are there once `finish`
            was called.
    """

    heads: Mapping[str, int]
    primary: str
    staged: bool = True
    warnings: tuple[str, ...] = ()

    def __init__(self, recorder: TaskRecorder | None, vocabulary: Vocabulary) -> None:
        self._recorder = recorder
        self.vocabulary = vocabulary

    @property
    def recorder(self) -> TaskRecorder:
        """Of the task that is trained."""
        assert self._recorder is not None
        return self._recorder

    @property
    def prompt(self) -> str | None:
        """SHA-256 of the prompt that is trained with."""
        prompt = None if self._recorder is None else self._recorder.task.prompt
        return None if prompt is None else prompt.sha256

    @abc.abstractmethod
    def prepare(self, train: Sequence[RowT]) -> None:
        """Take from the training rows what has to be known before examples are made.

        Raises:
            DataError: they will not do.
            NotTrainable: the task's head will not.
        """

    def mix(self, new: Sequence[RowT], old: Sequence[RowT], share: float) -> None:
        """Be told that the rows of `train` are replayed old ones and new ones.

        Args:
            share: of each batch that is old.
        """
        return

    @abc.abstractmethod
    def examples(self, rows: Sequence[RowT]) -> list[Example]:
        """What is learnt from rows, or asked of them, in their order."""

    def begin(self, start: Start) -> None:
        """Take from the model what has to be known before it is trained.

        It is called in every sitting, and keeps in the run's folder what is slow to compute.
        """

    def finish(self, backbone: Backbone, figures: Mapping[str, float]) -> Mapping[str, float]:
        """More figures of the trained model, beside these of its answers to rows."""
        return {}

    @abc.abstractmethod
    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of the losses of a pass, each times its weight.

        Args:
            hidden: `[texts, longest, width]` of the examples' texts in order.
        """

    @abc.abstractmethod
    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        """Per example, what its answer is made of, on the CPU."""

    @abc.abstractmethod
    def answers(
        self, rows: Sequence[RowT], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, Answers]:
        """Answers to rows by head; those of the whole are their mean where there are several."""

    @abc.abstractmethod
    def specs(
        self, rows: Sequence[RowT], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, HeadSpec]:
        """The heads for the manifest, calibrated on the development split's outputs."""

    @abc.abstractmethod
    def reports(
        self,
        train: Sequence[RowT],
        rows: Sequence[RowT],
        examples: Sequence[Example],
        outputs: Sequence[Any],
        specs: Mapping[str, HeadSpec],
    ) -> Mapping[str, Report]:
        """Figures of rows beside their floors, by head; none where there are no floors."""

    @abc.abstractmethod
    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        """What an answer to an example is in numbers, from its output."""

    @abc.abstractmethod
    def found(self, raw: Raw) -> list[float]:
        """The same numbers of an engine's raw answer."""

    def asked(self, example: Example) -> Request:
        """What a worker asks for an example."""
        request = example.texts[0].request
        assert request is not None
        return request

    def figures(
        self, rows: Sequence[RowT], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> dict[str, float]:
        """Figures of rows; of several heads also as `HEAD.FIGURE`."""
        by_head = {n: dict(a.metrics()) for n, a in self.answers(rows, examples, outputs).items()}
        if len(by_head) == 1:
            return next(iter(by_head.values()))
        found = {f"{n}.{figure}": v for n, each in by_head.items() for figure, v in each.items()}
        for figure in next(iter(by_head.values()), {}):
            found[figure] = sum(each[figure] for each in by_head.values()) / len(by_head)
        return found
