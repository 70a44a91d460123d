"""Intents: what a message is about.

Two opinions on the categories of the knowledge base are multiplied, each raised to its weight
(a product of experts, Hinton 2002): what retrieval found, and what the model finds likely.
What is asked for in so many words, such as a person, needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from gptflow_customer_service.knowledge import Category
from gptflow_customer_service.matching import Match
from gptflow_customer_service.schema import Intent

OTHER = "other"
TOPICS: Mapping[str, str] = {
    "orders": "order",
    "delivery": "delivery",
    "returns": "return",
    "refunds": "refund",
    "payments": "payment",
    "products": "product",
    "cards": "bank card",
    "transfers": "bank transfer",
    "accounts": "account",
    "rates": "exchange or interest rate",
    "branches": "opening hours or contact",
    "privacy": "privacy",
    OTHER: "other",
}
"""The labels that the model chooses among, and the words by which it knows them."""

assert set(TOPICS) == {*get_args(Category), OTHER}

MODEL_WEIGHT = 0.2
"""Against retrieval's 1. Chosen on the calibration questions for SmolLM2-135M, whose zero-shot
opinion is right for three in ten; see the README. A better model deserves more."""

_FLOOR = 0.02
"""What retrieval gives to a category of which it found nothing."""


def certain(label: str) -> Intent:
    """An intent that the words alone make plain."""
    return Intent(label=label, score=1.0, probs={label: 1.0})


def combine(probs: Mapping[str, float], matches: Iterable[Match]) -> Intent:
    """The model's probabilities joined with the surest match of each category.

    What is ranked below the best match counts for as much as that one may be wrong, and so
    does `other`.

    Args:
        probs: per label of `TOPICS`.
        matches: the best one first.
    """
    evidence = dict.fromkeys(TOPICS, _FLOOR)
    best = 0.0
    for rank, match in enumerate(matches):
        share = match.confidence * (1 - best)
        best = match.confidence if rank == 0 else best
        category = match.entry.category
        evidence[category] = max(evidence[category], share)
    evidence[OTHER] = max(_FLOOR, 1 - best)
    weights = {label: evidence[label] * probs[label] ** MODEL_WEIGHT for label in TOPICS}
    total = sum(weights.values())
    combined = {label: weight / total for label, weight in weights.items()}
    label = max(combined, key=lambda name: combined[name])
    return Intent(label=label, score=combined[label], probs=combined)
