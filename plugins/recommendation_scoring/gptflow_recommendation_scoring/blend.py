"""Blend: what the signals are worth together, learnt from what people took."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, FiniteFloat

from gptflow.task import Input, Text

Name = Annotated[Text, Field(max_length=256)]


class Blend(Input):
    """A logistic model of raw signals; `python -m gptflow_recommendation_scoring.fitting`.

    Attributes:
        weights: per signal, the log-odds that one unit more of it is worth.
        means: of the signals that it was fitted on, which stand in for what is not known.
        bias: the log-odds of an item whose signals are all at their means.
    """

    weights: dict[Name, FiniteFloat] = Field(min_length=1, max_length=66)
    means: dict[Name, FiniteFloat] = Field({})
    bias: FiniteFloat = 0.0

    def centred(self, name: str, value: float | None) -> float:
        """A signal's distance from its mean; 0 where it is not known."""
        return 0.0 if value is None else value - self.means.get(name, 0.0)

    def probability(self, score: float) -> float:
        """Of an item whose contributions add up to `score`, that it is taken."""
        odds = score + self.bias
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
