"""Every default number of the ranking, in one place."""

from __future__ import annotations

from typing import Literal

EventKind = Literal["view", "click", "like", "comment", "share", "buy"]

EVENT_WEIGHTS: dict[EventKind, float] = {
    "view": 1.0,
    "click": 2.0,
    "like": 3.0,
    "comment": 3.0,
    "share": 4.0,
    "buy": 5.0,
}
"""How much each kind of event says about a user's taste."""

HALF_LIFE_DAYS = 30.0
"""An event that is this much older than another counts half as much."""

NEWEST_EVENTS = 20
"""Older events still mark their items as seen; they no longer describe the user."""

INTEREST = "interest"
SIMILARITY = "similarity"
POPULARITY = "popularity"

WEIGHTS: dict[str, float] = {
    INTEREST: 1.0,
    SIMILARITY: 0.5,
    POPULARITY: 0.3,
    "rating": 0.3,
    "recency": 0.2,
    "price": -0.1,
}
"""What one signal can add to a score at most; every signal is spread over -1..1 first."""

DIVERSITY = 0.3
"""1 - lambda of maximal marginal relevance."""

MODEL_CANDIDATES = 50
"""Candidates that the model reads; a cheaper score chooses them."""

ADAPTER = "interest"
"""The alias of the adapter that is trained on what people went on to."""

READ_BY_HEAD = 10
"""Titles of the history that the trained head reads, the newest; what it was trained on."""
