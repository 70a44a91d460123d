"""Texts: pre-training on raw text, for no task and no head.

Documents stand one after the other, an end token before, between and after them, and the whole is
cut into windows of so many tokens. A window begins with the last token of the one before it: so
every token but the first is learnt exactly once in an epoch. Inside a window attention looks back
over the end of a document into the one before (Brown et al. 2020, "Language Models are Few-Shot
Learners", section 2.3); the end token is all that parts them.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from gptflow.adapter import HeadSpec
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import NotTrainable
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import PlainText
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads
from gptflow.training.kept import kept
from gptflow.training.objectives.dialogues import TextAnswers
from gptflow.training.objectives.generating import GeneratingObjective
from gptflow.training.objectives.objective import Start
from gptflow.training.objectives.token_losses import token_losses
from gptflow.training.settings import TrainingSettings

NAME = "text"

BEFORE = "before.json"
"""In a run's folder: the figures of the model that it began with."""


class _Output(NamedTuple):
    """A window's log-probability, and its last token's hidden state."""

    logprob: float
    last: list[float]


class TextObjective(GeneratingObjective[PlainText]):
    """Learns to go on with text.

    Args:
        adapter: the alias that is trained.
        context: most tokens of a window.

    Raises:
        NotTrainable: a window is longer than the context, there is no end token, or the head
            alone is to be trained, and there is none.
    """

    primary = "mean_logprob"
    staged = False

    def __init__(
        self, vocabulary: Vocabulary, settings: TrainingSettings, *, adapter: str, context: int
    ) -> None:
        super().__init__(None, vocabulary)
        if settings.method == "head":
            raise NotTrainable(
                "Pre-training has no head.", hint="Train with `--method lora` or `--method full`."
            )
        if settings.window > context:
            raise NotTrainable(
                f"A window of {settings.window} tokens does not fit a context of {context}.",
                hint=f"Train with `--window {context}` at most.",
            )
        if vocabulary.document_end is None:
            raise NotTrainable("The model has no token that ends a document.")
        self._end = vocabulary.document_end
        self._window = settings.window
        self._adapter = adapter
        self._before: Mapping[str, float] = {}

    @property
    def adapter(self) -> str:
        return self._adapter

    def prepare(self, train: Sequence[PlainText]) -> None:
        pass  # whatever is text will do

    def examples(self, rows: Sequence[PlainText]) -> list[Example]:
        stream = [self._end]
        starts: list[int] = []
        for row in rows:
            starts.append(len(stream))
            stream += self.vocabulary.encode_text(row.text)
            stream.append(self._end)
        made = []
        for at in range(0, len(stream) - 1, self._window - 1):
            ids = tuple(stream[at : at + self._window])
            number = max(0, bisect.bisect_right(starts, at + 1) - 1)
            made.append(Example((Text(ids),), None, float(len(ids) - 1), number))
        return made

    def begin(self, start: Start) -> None:
        def measure() -> dict[str, float]:
            with start.backbone.in_float32():  # as in the end
                return self.figures(start.rows, start.measured, start.predict(start.measured))

        texts = [example.texts[0].ids for example in start.measured]
        self._before = kept(start.folder / BEFORE, texts, measure)
        start.note(f"perplexity {self._before['perplexity']:.2f} before the training")

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        return self._losses(backbone, examples, hidden).sum()

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        losses = self._losses(backbone, examples, hidden)
        parts = losses.split([len(example.texts[0]) - 1 for example in examples])
        return [
            _Output(-float(part.double().sum()), states[len(example.texts[0]) - 1].cpu().tolist())
            for part, states, example in zip(parts, hidden, examples, strict=True)
        ]

    def answers(
        self, rows: Sequence[PlainText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, TextAnswers]:
        logprobs = np.array([output.logprob for output in outputs])
        tokens = np.array([example.weight for example in examples])
        return {NAME: TextAnswers(logprobs=logprobs, tokens=tokens)}

    def figures(
        self, rows: Sequence[PlainText], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> dict[str, float]:
        """Beside the perplexity the bits per byte, which models of other tokenizers share."""
        found = super().figures(rows, examples, outputs)
        count = sum(len(row.text.encode()) for row in rows)
        logprob = math.fsum(output.logprob for output in outputs)
        return found | {"bits_per_byte": -logprob / math.log(2) / count}

    def finish(self, backbone: Backbone, figures: Mapping[str, float]) -> Mapping[str, float]:
        before = self._before["perplexity"]
        return {
            "perplexity_before": before,
            "perplexity_fall": 1 - figures["perplexity"] / before,
            "bits_per_byte_before": self._before["bits_per_byte"],
        }

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        found: list[float] = output.last
        return found

    def _losses(
        self, backbone: Backbone, examples: Sequence[Example], hidden: torch.Tensor
    ) -> torch.Tensor:
        """Of each window's tokens but its first, `[tokens]`."""
        states = [hidden[i, : len(example.texts[0]) - 1] for i, example in enumerate(examples)]
        gold = itertools.chain.from_iterable(example.texts[0].ids[1:] for example in examples)
        return token_losses(
            backbone, torch.cat(states), torch.tensor(list(gold), device=hidden.device)
        )
