"""Maximal marginal relevance against its definition, written down step by step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gptflow_recommendation_scoring.diversity import pick
from gptflow_recommendation_scoring.ranking import Standing
from gptflow_recommendation_scoring.schema import Candidate
from gptflow_recommendation_scoring.text_space import TextSpace

TEXTS = st.lists(st.sampled_from(["red", "wool", "socks", "hose", "龙年"]), max_size=3).map(
    " ".join
)
ROWS = st.lists(
    st.tuples(TEXTS, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([None, "x", "y"])),
    min_size=1,
    max_size=9,
)


def by_definition(standings, space, k, diversity, cap):
    scores = [standing.score for standing in standings]
    low, high = min(scores), max(scores)
    chosen = []
    while len(chosen) < k:
        categories = [standings[i].candidate.category for i in chosen]
        gains = {}
        for i, standing in enumerate(standings):
            category = standing.candidate.category
            if i in chosen or (category and cap and categories.count(category) >= cap):
                continue
            scaled = (standing.score - low) / (high - low) if high > low else 1.0
            near = max((space.cosine(i, j) for j in chosen), default=0.0)
            gains[i] = round((1 - diversity) * scaled - diversity * near, 9)
        if not gains:
            break
        best = max(gains.values())
        tied = [i for i in gains if gains[i] == best]
        chosen.append(min(tied, key=lambda i: (-scores[i], i)))
    return chosen


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 9), st.floats(0, 1), st.none() | st.integers(1, 3))
def test_the_quick_way_chooses_as_the_definition_does(rows, k, diversity, cap):
    standings = [
        Standing(
            candidate=Candidate(item_id=str(n), text=text, category=category),
            contributions={},
            missing=(),
            score=score,
            cold=False,
        )
        for n, (text, score, category) in enumerate(rows)
    ]
    space = TextSpace([text for text, _, _ in rows])
    order = sorted(range(len(rows)), key=lambda i: (-standings[i].score, i))
    chosen, _ = pick(standings, order, space, k=k, diversity=diversity, category_cap=cap)
    assert chosen == by_definition(standings, space, k, diversity, cap)
