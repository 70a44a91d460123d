"""Scores: `Score` over the candidates of a query, trained in pairs or one by one.

In pairs, the better of two candidates of one query is to have the higher score (Burges et al. 2005,
"Learning to Rank using Gradient Descent"): the loss is -log sigmoid of the difference. One by one,
the score's sigmoid is to be the given one, which then has to be between 0 and 1.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gptflow.adapter import HeadSpec, ScoreHead
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadRows, NotTrainable, OneClass
from gptflow.heads import Head, Raw, Score, Scored
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import ScoredPair
from gptflow.training.evaluation.answers import Answers
from gptflow.training.evaluation.pairs import pair_floors, rank_pairs
from gptflow.training.evaluation.summary import Report
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads, pool
from gptflow.training.objectives.objective import Objective
from gptflow.training.recording import TaskRecorder
from gptflow.training.report import report_rankings
from gptflow.training.settings import TrainingSettings

NAME = "score"
"""Of the head in the adapter."""

MOST = 16
"""Candidates of one query in one example; of more, several are made."""


class ScoreObjective(Objective[ScoredPair]):
    """Learns which candidates fit a query."""

    primary = "mrr"

    def __init__(
        self,
        recorder: TaskRecorder,
        vocabulary: Vocabulary,
        head: Head,
        settings: TrainingSettings,
    ) -> None:
        super().__init__(recorder, vocabulary)
        if not isinstance(head, Score):
            raise NotTrainable(f"A {type(head).__name__} head is not trained on scores.")
        self.heads = {NAME: 1}
        self._settings = settings
        declared = recorder.task.head
        self._each = declared.each if isinstance(declared, Score) else None
        if self._each is None:
            raise NotTrainable(
                f"Task {recorder.task.name!r} does not say which field holds the candidates.",
                hint='Declare its head as `Score(each="items", adapter=...)`.',
            )

    def prepare(self, train: Sequence[ScoredPair]) -> None:
        if len({row.score for row in train}) < 2:
            raise OneClass(
                "Every training pair has the same score.", hint="Add pairs that fit less well."
            )
        if not self._settings.pairwise:
            odd = next((row for row in train if not 0 <= row.score <= 1), None)
            if odd is not None:
                raise BadRows(
                    f"{odd.origin} has the score {odd.score:g}, not one from 0 to 1.",
                    hint="Learn from pairs in place of single scores: `--pairwise`.",
                )
        elif not any(example.weight for example in self._grouped(train, [Text((0,))] * len(train))):
            raise OneClass(
                "No query has two candidates of which one is better.",
                hint="Give several candidates a query, or learn each by itself: `--pointwise`.",
            )

    def examples(self, rows: Sequence[ScoredPair]) -> list[Example]:
        inputs = [
            {**self.recorder.task.input_type.from_text(row.query), self._each: [row.candidate]}
            for row in rows
        ]
        texts = []
        for request in self.recorder.record(inputs, rows):
            assert not isinstance(request.prompt, tuple)
            texts.append(Text(self.vocabulary.encode(request.prompt), request))
        return self._grouped(rows, texts)

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        scores = self._scores(heads, examples, hidden)
        total = hidden.new_zeros(())
        at = 0
        for example in examples:
            own = scores[at : at + len(example.texts)]
            at += len(own)
            gold = torch.tensor([score for _, score in example.target], device=own.device)
            if self._settings.pairwise:
                better = gold[:, None] > gold[None, :]
                gaps = own[:, None] - own[None, :]
                total = total - torch.nn.functional.logsigmoid(gaps[better]).sum()
            else:
                total = total + torch.nn.functional.binary_cross_entropy_with_logits(
                    own, gold, reduction="sum"
                )
        return total

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        scores = self._scores(heads, examples, hidden).float().cpu()
        return list(scores.split([len(example.texts) for example in examples]))

    def answers(
        self, rows: Sequence[ScoredPair], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, Answers]:
        values = [0.0] * len(rows)
        for example, scores in zip(examples, outputs, strict=True):
            for (row, _), score in zip(example.target, scores.tolist(), strict=True):
                values[row] = score
        return {NAME: rank_pairs(rows, values)}

    def specs(
        self, rows: Sequence[ScoredPair], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, HeadSpec]:
        return {NAME: ScoreHead()}

    def reports(
        self,
        train: Sequence[ScoredPair],
        rows: Sequence[ScoredPair],
        examples: Sequence[Example],
        outputs: Sequence[Any],
        specs: Mapping[str, HeadSpec],
    ) -> Mapping[str, Report]:
        answers: Any = self.answers(rows, examples, outputs)[NAME]
        floors: Any = pair_floors(rows)
        return {NAME: report_rankings(answers, title=NAME, floors=floors)}

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        return [float(output[0])]

    def found(self, raw: Raw) -> list[float]:
        assert isinstance(raw, Scored)
        return list(raw.values)

    def _scores(
        self, heads: TrainedHeads, examples: Sequence[Example], hidden: torch.Tensor
    ) -> torch.Tensor:
        lengths = [len(text) for example in examples for text in example.texts]
        scores: torch.Tensor = heads[NAME](pool(hidden, lengths, self._settings.pooling))[:, 0]
        return scores

    def _grouped(self, rows: Sequence[ScoredPair], texts: Sequence[Text]) -> list[Example]:
        """One example per query, or per candidate; the target is of rows and their scores."""
        if not self._settings.pairwise:
            return [
                Example((text,), ((number, row.score),), 1.0, number)
                for number, (row, text) in enumerate(zip(rows, texts, strict=True))
            ]
        by_query: defaultdict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            by_query[row.query].append(number)
        made = []
        for numbers in by_query.values():
            # The best ones and the worst ones in every part, so that each has pairs.
            order = sorted(numbers, key=lambda n: -rows[n].score)
            count = -(-len(order) // MOST)
            for part in (order[start::count] for start in range(count)):
                target = tuple((n, rows[n].score) for n in part)
                pairs = sum(a[1] != b[1] for a, b in itertools.combinations(target, 2))
                made.append(Example(tuple(texts[n] for n in part), target, float(pairs), part[0]))
        return made
