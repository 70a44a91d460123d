"""Statistics: what there is, how much of it, and how long it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gptflow.training.data.language import language_of
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Preference,
    Row,
    ScoredPair,
    TaggedText,
)


def describe(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts and quantiles, as JSON would have them; lengths are in characters."""
    found: dict[str, Any] = {"rows": len(rows)}
    if not rows:
        return found
    found["length"] = quantiles([len(row.content) for row in rows])
    languages = Counter(row.language or language_of(row.content) for row in rows)
    found["languages"] = dict(languages.most_common())
    if heads := _labels(rows):
        found["labels"] = heads
    if spans := _spans(rows):
        found["spans"] = spans
    turns = [row for row in rows if isinstance(row, Dialogue)]
    if turns:
        found["turns"] = quantiles([len(row.turns) for row in turns])
        found["roles"] = dict(Counter(turn.role for row in turns for turn in row.turns))
    if scores := [row.score for row in rows if isinstance(row, ScoredPair)]:
        found["scores"] = quantiles(scores)
    if answers := [row for row in rows if isinstance(row, Preference)]:
        found["prompts"] = len({row.asked for row in answers})
        found["chosen"] = quantiles([len(row.chosen) for row in answers])
        found["rejected"] = quantiles([len(row.rejected) for row in answers])
        longer = sum(len(row.chosen) > len(row.rejected) for row in answers)
        found["chosen is longer"] = round(longer / len(answers), 4)
    if groups := Counter(row.group for row in rows if row.group is not None):
        found["groups"] = {"count": len(groups), "rows": quantiles(list(groups.values()))}
    if times := [row.time for row in rows if row.time is not None]:
        found["time"] = {
            name: datetime.fromtimestamp(moment, UTC).isoformat()
            for name, moment in (("first", min(times)), ("last", max(times)))
        }
    return found


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Least, median, 95th percentile and most, by the nearest value."""
    ordered = sorted(values)
    places = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in places.items()}


def _labels(rows: Sequence[Row]) -> Mapping[str, Mapping[str, int]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if isinstance(row, LabelledText):
            for head, label in row.labels.items():
                counts[head][label] += 1
    return {head: dict(labels.most_common()) for head, labels in sorted(counts.items())}


def _spans(rows: Sequence[Row]) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, TaggedText):
            counts["O"] += row.tags.count("O")
            counts.update(tag[2:] for tag in row.tags if tag.startswith("B-"))
    return {"tokens of none": counts.pop("O"), **dict(counts.most_common())} if counts else {}
