"""Diversity: maximal marginal relevance (Carbonell and Goldstein 1998), and a category cap."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from gptflow_recommendation_scoring.ranking import Standing
from gptflow_recommendation_scoring.text_space import TextSpace

_DIGITS = 9


def pick(
    standings: Sequence[Standing],
    order: Sequence[int],
    space: TextSpace,
    *,
    k: int,
    diversity: float,
    category_cap: int | None = None,
) -> tuple[list[int], list[int]]:
    """Choose k candidates one by one: a good score, unlike what was chosen before.

    The next one has the highest (1 - diversity) * score - diversity * (cosine with the nearest
    chosen one), scores scaled to 0..1.

    Args:
        order: all candidates, best first; it decides ties.

    Returns:
        The chosen ones in order, and those that only the cap kept out.
    """
    scores = [standing.score for standing in standings]
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    nearest = [0.0] * len(scores)
    compared = [0] * len(scores)
    taken: Counter[str] = Counter()
    chosen: list[int] = []

    def loss(i: int) -> float:
        """What choosing a candidate costs; it never falls while more are chosen."""
        return round(diversity * nearest[i] - (1 - diversity) * scaled[i], _DIGITS)

    def is_full(i: int) -> bool:
        category = standings[i].candidate.category
        return category_cap is not None and category is not None and taken[category] >= category_cap

    # Losses never fall, so whoever is first with a fresh loss beats all the stale ones behind.
    heap = [(loss(i), place, i) for place, i in enumerate(order)]
    heapq.heapify(heap)
    kept_out: list[int] = []
    while heap and len(chosen) < k:
        _, place, i = heapq.heappop(heap)
        if is_full(i):
            kept_out.append(i)
            continue
        if diversity:
            cosines = (space.cosine(i, other) for other in chosen[compared[i] :])
            nearest[i] = max(nearest[i], *cosines, 0.0)
            compared[i] = len(chosen)
        entry = (loss(i), place, i)
        if heap and heap[0] < entry:
            heapq.heappush(heap, entry)
            continue
        chosen.append(i)
        if (category := standings[i].candidate.category) is not None:
            taken[category] += 1
    kept_out += [i for _, _, i in heap if is_full(i)]
    lowest = min(scores[i] for i in chosen)
    short = len(chosen) < k
    return chosen, sorted(i for i in kept_out if short or scores[i] > lowest)
