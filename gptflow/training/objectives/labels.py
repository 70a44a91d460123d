"""Labels: `Classify` and `MultiHead`, trained by cross-entropy on the pooled hidden state.

A row that has no label for a head is masked there, so that data sets with different labels can be
trained on together.

Where old rows are replayed among new ones, most labels of a batch are the new rows'. The logits are
then adjusted by how often each label comes, as in Menon et al. 2021, "Long-tail learning via logit
adjustment": otherwise an answer is a new label because most answers are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gptflow.adapter import ClassifyHead, HeadSpec
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadLabel, EmptyData, NotTrainable
from gptflow.heads import Choices, Chosen, Classify, Head, MultiHead, Raw
from gptflow.training.backbone import Backbone
from gptflow.training.data.requirements import require_classes
from gptflow.training.data.rows import LABEL, LabelledText
from gptflow.training.evaluation import calibration, scope
from gptflow.training.evaluation.floors import label_floors
from gptflow.training.evaluation.labels import LabelAnswers
from gptflow.training.evaluation.summary import Report
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads, pool
from gptflow.training.objectives.objective import Objective
from gptflow.training.recording import TaskRecorder
from gptflow.training.report import report_labels
from gptflow.training.settings import TrainingSettings

_TOLD = 5


class LabelObjective(Objective[LabelledText]):
    """Learns one label per head.

    Args:
        head: that the task asks.
    """

    primary = "macro_f1"

    def __init__(
        self,
        recorder: TaskRecorder,
        vocabulary: Vocabulary,
        head: Head,
        settings: TrainingSettings,
    ) -> None:
        super().__init__(recorder, vocabulary)
        self._settings = settings
        if isinstance(head, MultiHead):
            self.labels = {name: each.labels for name, each in head.heads.items()}
        elif isinstance(head, Classify):
            self.labels = {LABEL: head.labels}
        else:
            raise NotTrainable(f"A {type(head).__name__} head is not trained on labels.")
        self.heads = {name: len(labels) for name, labels in self.labels.items()}
        self._weights = {name: torch.ones(count) for name, count in self.heads.items()}
        self._offsets: dict[str, torch.Tensor] = {}

    def mix(self, new: Sequence[LabelledText], old: Sequence[LabelledText], share: float) -> None:
        for name, labels in self.labels.items():
            self._offsets[name] = _log_frequencies(new, old, share, name, labels)

    def prepare(self, train: Sequence[LabelledText]) -> None:
        known = self._known(train)
        self.warnings = tuple(
            f"no row has a label for the head {name!r}, which learnt nothing"
            for name in self.labels
            if name not in known
        )
        for name in known:
            require_classes(train, name)
            if self._settings.class_weights:
                self._weights[name] = _root_weights(train, name, self.labels[name])

    def examples(self, rows: Sequence[LabelledText]) -> list[Example]:
        self._known(rows)
        requests = self.recorder.record([row.text for row in rows], rows)
        made = []
        for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
            assert not isinstance(request.prompt, tuple)
            target = {
                name: labels.index(row.labels[name])
                for name, labels in self.labels.items()
                if name in row.labels
            }
            weight = sum(float(self._weights[name][column]) for name, column in target.items())
            text = Text(self.vocabulary.encode(request.prompt), request)
            made.append(Example((text,), target, weight, number))
        return made

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        pooled = self._pooled(examples, hidden)
        total = hidden.new_zeros(())
        for name in self.labels:
            rows = [i for i, example in enumerate(examples) if name in example.target]
            if rows:
                gold = torch.tensor([examples[i].target[name] for i in rows], device=hidden.device)
                logits = heads[name](pooled[rows])
                if name in self._offsets:
                    logits = logits + self._offsets[name].to(hidden.device)
                total = total + torch.nn.functional.cross_entropy(
                    logits,
                    gold,
                    weight=self._weights[name].to(hidden.device),
                    reduction="sum",
                )
        return total

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        return self.outputs_of(heads, self._pooled(examples, hidden))

    def outputs_of(self, heads: TrainedHeads, vectors: torch.Tensor) -> list[Any]:
        """What heads make of vectors, `[examples, width]`."""
        logits = {name: heads[name](vectors).float().cpu() for name in self.labels}
        return [{name: each[i] for name, each in logits.items()} for i in range(len(vectors))]

    def vectors(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What the heads read."""
        return list(self._pooled(examples, hidden).float().cpu())

    def answers(
        self, rows: Sequence[LabelledText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, LabelAnswers]:
        found = {}
        for name in self._known(rows):
            kept = [i for i, row in enumerate(rows) if name in row.labels]
            found[name] = LabelAnswers(
                rows=[rows[i] for i in kept],
                labels=self.labels[name],
                probs=_probs([outputs[i][name] for i in kept]),
                head=name,
            )
        return found

    def specs(
        self, rows: Sequence[LabelledText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, HeadSpec]:
        fitted = {
            name: calibration.fit_temperature(answers.probs, answers.gold)
            for name, answers in self.answers(rows, examples, outputs).items()
            if answers.probs is not None
        }
        return {
            name: ClassifyHead(
                labels=labels,
                temperature=fitted.get(name, 1.0),
                energy=self._least_energy(name, rows, outputs) if name in fitted else None,
            )
            for name, labels in self.labels.items()
        }

    def _least_energy(
        self, name: str, rows: Sequence[LabelledText], outputs: Sequence[Any]
    ) -> float | None:
        """The energy that the settings' share of the rows with a label has."""
        if self._settings.in_scope is None:
            return None
        kept = [o[name] for row, o in zip(rows, outputs, strict=True) if name in row.labels]
        energies = scope.energy(torch.stack(kept).double().numpy())
        return scope.choose_threshold(energies, self._settings.in_scope)

    def reports(
        self,
        train: Sequence[LabelledText],
        rows: Sequence[LabelledText],
        examples: Sequence[Example],
        outputs: Sequence[Any],
        specs: Mapping[str, HeadSpec],
    ) -> Mapping[str, Report]:
        found = {}
        for name, answers in self.answers(rows, examples, outputs).items():
            spec = specs[name]
            assert isinstance(spec, ClassifyHead)
            floors = label_floors(
                [row for row in train if name in row.labels],
                list(answers.rows),
                self.labels[name],
                head=name,
            )
            found[name] = report_labels(
                answers,
                title=name,
                temperature=spec.temperature,
                floors=floors,
                train=train,
                seed=self._settings.seed,
            )
        return found

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        # Logits: a high temperature would hide that they differ.
        return [logit for name in self.labels for logit in output[name].tolist()]

    def found(self, raw: Raw) -> list[float]:
        by_head = raw.by_head if isinstance(raw, Choices) else {LABEL: raw}
        logits: list[float] = []
        for name, labels in self.labels.items():
            chosen = by_head[name]
            assert isinstance(chosen, Chosen)
            logits += [chosen.scores[label] for label in labels]
        return logits

    def _pooled(self, examples: Sequence[Example], hidden: torch.Tensor) -> torch.Tensor:
        return pool(hidden, [len(e.texts[0]) for e in examples], self._settings.pooling)

    def _known(self, rows: Sequence[LabelledText]) -> tuple[str, ...]:
        """The heads that any row has a label for.

        Raises:
            BadLabel: a label is none of its head's, or is for a head that the task does not have.
            EmptyData: no row has a label for any head.
        """
        strange: dict[str, LabelledText] = {}
        for row in rows:
            for name, label in row.labels.items():
                if name not in self.labels:
                    strange.setdefault(f"the head {name!r}", row)
                elif label not in self.labels[name]:
                    strange.setdefault(repr(label), row)
        if strange:
            names = ", ".join(list(strange)[:_TOLD])
            more = f" and {len(strange) - _TOLD} more" if len(strange) > _TOLD else ""
            known = "; ".join(
                f"{name}: {', '.join(labels[:_TOLD])}{', ...' if len(labels) > _TOLD else ''}"
                for name, labels in self.labels.items()
            )
            raise BadLabel(
                f"Task {self.recorder.task.name!r} does not know {names}{more}; the first is at "
                f"{next(iter(strange.values())).origin}.",
                hint=f"Its labels are {known}. Rename the data's: `--rename 0=NAME`, "
                "`--label HEAD=FIELD`.",
            )
        found = tuple(n for n in self.labels if any(n in row.labels for row in rows))
        if not found:
            raise EmptyData(
                "No row has a label.", hint="Name the column of the labels: `--label COLUMN`."
            )
        return found


def _probs(logits: Sequence[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.stack(list(logits)).double().softmax(-1).numpy()


def _root_weights(rows: Sequence[LabelledText], head: str, labels: Sequence[str]) -> torch.Tensor:
    """Per label, the root of how rare it is, so that a row weighs 1 on average."""
    counts = Counter(row.labels[head] for row in rows if head in row.labels)
    roots = [1 / math.sqrt(counts[label]) if counts[label] else 0.0 for label in labels]
    mean = sum(r * counts[label] for r, label in zip(roots, labels, strict=True)) / counts.total()
    return torch.tensor([root / mean for root in roots])


def _log_frequencies(
    new: Sequence[LabelledText],
    old: Sequence[LabelledText],
    share: float,
    head: str,
    labels: Sequence[str],
) -> torch.Tensor:
    """Per label, the logarithm of how often it comes in batches of which a share is old.

    A label that never comes is taken for one that comes often, so that it is unlearnt.
    """
    counts = [
        Counter(row.labels[head] for row in rows if head in row.labels) for rows in (new, old)
    ]
    found = torch.zeros(len(labels))
    for count, part in zip(counts, (1 - share, share), strict=True):
        for place, label in enumerate(labels):
            found[place] += part * count[label] / max(1, count.total())
    often = found.max() if bool(found.any()) else torch.ones(())
    return torch.where(found > 0, found, often).log()
