"""Reading: what each sequence's head takes from a step's hidden states."""

from __future__ import annotations

import torch

from gptflow.engine.events import Events
from gptflow.engine.outcomes import Outcomes
from gptflow.engine.runner import Runner
from gptflow.engine.sampler import sample
from gptflow.engine.scoring import Scoring, Target
from gptflow.engine.sequence import Chunk, Decoding, Readout
from gptflow.engine.statistics import Statistics
from gptflow.engine.trace import Phases


class Reader:
    """Draws tokens, adds up scores and pools vectors, for all sequences of a step at once."""

    def __init__(
        self, runner: Runner, outcomes: Outcomes, statistics: Statistics, events: Events
    ) -> None:
        self._runner = runner
        self._outcomes = outcomes
        self._statistics = statistics
        self._events = events

    def read(self, chunks: list[Chunk], hidden: torch.Tensor, phases: Phases) -> None:
        """Give each sequence what its head reads off the step.

        Args:
            hidden: of all chunks' rows, `[rows, width]`.
        """
        drawing: list[tuple[int, Decoding]] = []
        scoring: list[tuple[int, Scoring, Target]] = []
        first = 0
        with phases("heads"):
            for chunk in chunks:
                match chunk.sequence:
                    case Decoding() as sequence if sequence.remaining == 0:
                        drawing.append((first + len(chunk) - 1, sequence))
                    case Scoring() as sequence:
                        offset = first - chunk.start
                        scoring += [
                            (offset + row, sequence, target)
                            for row, target in sequence.targets(chunk.start, chunk.stop)
                        ]
                    case Readout() as sequence:
                        with self._outcomes.alone(sequence):
                            sequence.add(chunk.start, hidden[first : first + len(chunk)])
                first += len(chunk)
            rows = [row for row, _ in drawing]
            logits = self._runner.logits(hidden, rows) if drawing else None
        if logits is not None:
            with phases("sampling"):
                self._draw(logits, [sequence for _, sequence in drawing])
        with phases("heads"):
            if scoring:
                self._score(hidden, scoring)
            for chunk in chunks:
                if isinstance(chunk.sequence, Scoring):
                    with self._outcomes.alone(chunk.sequence):
                        chunk.sequence.advance()

    def _draw(self, logits: torch.Tensor, sequences: list[Decoding]) -> None:
        rows = sample(logits, sequences, self._runner.summarize)
        for sequence, drawn in zip(sequences, rows, strict=True):
            with self._outcomes.alone(sequence):
                if isinstance(drawn, Exception):
                    raise drawn
                if sequence.first_token_at is None:
                    self._statistics.first_token(sequence)
                    self._events.record("first_token", sequence)
                sequence.accept(drawn.token, drawn.logprob)
                self._outcomes.emit(sequence)

    def _score(self, hidden: torch.Tensor, wanted: list[tuple[int, Scoring, Target]]) -> None:
        values = self._runner.logprobs(hidden, [(row, token) for row, _, (_, token) in wanted])
        for (_, sequence, (continuation, _)), value in zip(wanted, values, strict=True):
            with self._outcomes.alone(sequence):
                sequence.add(continuation, value)
