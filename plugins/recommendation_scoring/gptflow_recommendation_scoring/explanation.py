"""Explanations: contributions in words. No text is generated."""

from __future__ import annotations

from gptflow_recommendation_scoring.ranking import Standing
from gptflow_recommendation_scoring.taste import Entry, one_line

_TITLE = 60


def explain(standing: Standing, nearest: Entry | None) -> str:
    """What speaks for the item, what against, what is not known, and what is like it.

    Args:
        nearest: the most similar item of the history, if any has a word in common.
    """
    known = {k: v for k, v in standing.contributions.items() if k not in standing.missing}
    by_size = sorted(known.items(), key=lambda entry: (-abs(entry[1]), entry[0]))
    sentences = [
        f"{label}: {', '.join(parts)}."
        for label, parts in (
            ("For", [f"{name} {value:+.2f}" for name, value in by_size if value > 0]),
            ("Against", [f"{name} {value:+.2f}" for name, value in by_size if value < 0]),
            ("Not known", list(standing.missing)),
        )
        if parts
    ]
    if nearest is not None:
        sentences.append(f"Nearest in the history: “{one_line(nearest.text, _TITLE)}”.")
    return " ".join(sentences) or "Nothing tells it apart."
