"""Diversity: maximal marginal relevance (Carbonell and Goldstein 1998), and a category cap."""

from __future__ import annotations

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
    left = list(order)
    taken: Counter[str] = Counter()
    full: set[str] = set()
    chosen: list[int] = []
    kept_out: list[int] = []
    while left and len(chosen) < k:
        gains = [round((1 - diversity) * scaled[i] - diversity * nearest[i], _DIGITS) for i in left]
        best = left.pop(gains.index(max(gains)))
        chosen.append(best)
        for i, cosine in space.cosines(space.vectors[best]).items():
            nearest[i] = max(nearest[i], cosine)
        category = standings[best].candidate.category
        if category is not None:
            taken[category] += 1
            if taken[category] == category_cap:
                full.add(category)
                kept_out += [i for i in left if standings[i].candidate.category == category]
                left = [i for i in left if standings[i].candidate.category != category]
    lowest = min(scores[i] for i in chosen)
    short = len(chosen) < k
    return chosen, [i for i in kept_out if short or scores[i] > lowest]
