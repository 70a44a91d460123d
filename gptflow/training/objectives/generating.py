"""Generating: what the objectives of `Generate`, which train no head, have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptflow.adapter import HeadSpec
from gptflow.heads import Embed, Embedded, Raw
from gptflow.request import Request
from gptflow.training.evaluation.summary import Report
from gptflow.training.example import Example
from gptflow.training.objectives.objective import Objective, RowT


class GeneratingObjective(Objective[RowT]):
    """Learns texts. No simple model writes any, so that there are no floors to report."""

    heads: Mapping[str, int] = {}

    @property
    def adapter(self) -> str:
        """The alias that is trained."""
        return self.recorder.adapter

    def specs(
        self, rows: Sequence[RowT], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, HeadSpec]:
        return {}

    def reports(
        self,
        train: Sequence[RowT],
        rows: Sequence[RowT],
        examples: Sequence[Example],
        outputs: Sequence[Any],
        specs: Mapping[str, HeadSpec],
    ) -> Mapping[str, Report]:
        return {}

    def asked(self, example: Example) -> Request:
        # What decoding begins with, and no draw depends on: the last token's hidden state.
        head = Embed(pooling="last", normalize=False, adapter=self.adapter)
        return Request(prompt=example.texts[0].ids, head=head)

    def found(self, raw: Raw) -> list[float]:
        assert isinstance(raw, Embedded)
        return list(raw.vector)
