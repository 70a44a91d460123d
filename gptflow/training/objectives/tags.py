"""Tags: `Tag`, trained by cross-entropy on the hidden states of the text's tokens.

A causal model has not seen what follows a token, and tags badly for it. Where the task's prompt
holds the text twice, the second copy is tagged: each of its tokens has seen the whole text
(Springer et al. 2024, "Repetition Improves Language Model Embeddings"). Labels go from characters
to tokens: the first token that touches a span is its B, the others are its I. Answers are the
engine's own: Viterbi over IOB2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gptflow.adapter import HeadSpec, TagHead
from gptflow.engine import trained
from gptflow.engine.adapters import LinearHead
from gptflow.engine.locating import Token, locate
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadLabel, BadRows, NotTrainable
from gptflow.heads import Head, Raw, Span, Tag, Tagged
from gptflow.training.backbone import Backbone
from gptflow.training.data.requirements import require_types
from gptflow.training.data.rows import TaggedText
from gptflow.training.evaluation.floors import tag_floors
from gptflow.training.evaluation.summary import Report
from gptflow.training.evaluation.tags import TagAnswers
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.objective import Objective
from gptflow.training.recording import TaskRecorder
from gptflow.training.report import report_tags
from gptflow.training.settings import TrainingSettings

NAME = "tags"
"""Of the head in the adapter."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Target:
    """Where the text stands and what its tokens are.

    Attributes:
        first: its first token's number.
        tags: per token, the row of the head: O, then B and I of each label.
        shift: characters of the row's text before what the prompt holds of it.
    """

    first: int
    tokens: tuple[Token, ...]
    tags: tuple[int, ...]
    text: str
    shift: int


class TagObjective(Objective[TaggedText]):
    """Learns spans of characters.

    Attributes:
        echo: whether the prompt holds the text twice.
    """

    primary = "entity_f1"

    def __init__(
        self,
        recorder: TaskRecorder,
        vocabulary: Vocabulary,
        head: Head,
        settings: TrainingSettings,
    ) -> None:
        super().__init__(recorder, vocabulary)
        if not isinstance(head, Tag):
            raise NotTrainable(f"A {type(head).__name__} head is not trained on tags.")
        self.labels = head.labels
        self.heads = {NAME: 1 + 2 * len(head.labels)}
        self.echo = False
        self._seed = settings.seed

    def prepare(self, train: Sequence[TaggedText]) -> None:
        require_types(train)
        [request] = self.recorder.record([train[0].text])
        assert not isinstance(request.prompt, tuple)
        self.echo = locate(self.vocabulary, request.prompt, request.text).copies >= 2

    def examples(self, rows: Sequence[TaggedText]) -> list[Example]:
        for row in rows:
            for span in row.spans:
                if span.label not in self.labels:
                    raise BadLabel(
                        f"Task {self.recorder.task.name!r} does not know the label "
                        f"{span.label!r} of {row.origin}.",
                        hint=f"Its labels are {', '.join(self.labels)}. Rename the data's: "
                        "`--rename PER=person`.",
                    )
        requests = self.recorder.record([row.text for row in rows], rows)
        made = []
        for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
            assert not isinstance(request.prompt, tuple)
            located = locate(self.vocabulary, request.prompt, request.text)
            shift = row.text.find(request.text)
            if not located.tokens or shift < 0:
                raise BadRows(
                    f"{row.origin}: the task changes the text before it is tagged, so that its "
                    "spans cannot be placed.",
                    hint="Take control characters and invisible characters out of the text.",
                )
            tags = self._tags(row, located.tokens, shift)
            target = _Target(located.first, tuple(located.tokens), tags, request.text, shift)
            text = Text(self.vocabulary.encode(request.prompt), request)
            made.append(Example((text,), target, float(len(tags)), number))
        return made

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        logits = heads[NAME](torch.cat(_read(examples, hidden)))
        gold = torch.tensor([t for e in examples for t in e.target.tags], device=hidden.device)
        return torch.nn.functional.cross_entropy(logits, gold, reduction="sum")

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        return [heads[NAME](states).float().cpu() for states in _read(examples, hidden)]

    def answers(
        self, rows: Sequence[TaggedText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, TagAnswers]:
        found = []
        for example, logits in zip(examples, outputs, strict=True):
            shift = example.target.shift
            spans = self._spans(example, logits)
            found.append([(s.start + shift, s.end + shift, s.label) for s in spans])
        return {NAME: TagAnswers.from_spans(rows, found)}

    def specs(
        self, rows: Sequence[TaggedText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, HeadSpec]:
        return {NAME: TagHead(labels=self.labels, echo=self.echo)}

    def reports(
        self,
        train: Sequence[TaggedText],
        rows: Sequence[TaggedText],
        examples: Sequence[Example],
        outputs: Sequence[Any],
        specs: Mapping[str, HeadSpec],
    ) -> Mapping[str, Report]:
        report = report_tags(
            self.answers(rows, examples, outputs)[NAME],
            title=NAME,
            floors=tag_floors(train, rows),
            train=train,
            seed=self._seed,
        )
        return {NAME: report}

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        return self._numbers(self._spans(example, output))

    def found(self, raw: Raw) -> list[float]:
        assert isinstance(raw, Tagged)
        return self._numbers(raw.spans)

    def _spans(self, example: Example, logits: torch.Tensor) -> tuple[Span, ...]:
        """What the engine makes of these logits."""
        target: _Target = example.target
        spec = TagHead(labels=self.labels, echo=self.echo)
        return trained.tag(spec, _given(logits), logits, target.tokens, target.text)

    def _numbers(self, spans: Sequence[Span]) -> list[float]:
        return [
            number
            for span in spans
            for number in (span.start, span.end, self.labels.index(span.label), span.score)
        ]

    def _tags(self, row: TaggedText, tokens: Sequence[Token], shift: int) -> tuple[int, ...]:
        spans = [
            (s.start - shift, s.end - shift, 1 + 2 * self.labels.index(s.label)) for s in row.spans
        ]
        tags = [0] * len(tokens)
        for start, end, begin in spans:
            touched = [
                i for i, token in enumerate(tokens) if token.start < end and token.end > start
            ]
            free = [i for i in touched if tags[i] == 0]  # a token may touch two neighbours
            for place, i in enumerate(free):
                tags[i] = begin + (place > 0)
        return tuple(tags)


def _read(examples: Sequence[Example], hidden: torch.Tensor) -> list[torch.Tensor]:
    """Per example, the hidden states of the text's tokens."""
    found = []
    for number, example in enumerate(examples):
        target: _Target = example.target
        found.append(hidden[number, target.first : target.first + len(target.tokens)])
    return found


def _given(logits: torch.Tensor) -> LinearHead:
    """A head that gives back what it is given: the logits are computed already."""
    rows = logits.shape[1]
    return LinearHead(weight=torch.eye(rows), bias=torch.zeros(rows))
