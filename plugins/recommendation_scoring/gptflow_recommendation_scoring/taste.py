"""A user's taste: what the recent history says, strongest item last."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from gptflow_recommendation_scoring import defaults
from gptflow_recommendation_scoring.defaults import EventKind
from gptflow_recommendation_scoring.schema import Event, RankInput

TITLE = 160
"""Characters of one item that the model is shown: a title and a line of description."""


def one_line(text: str, limit: int) -> str:
    """The text as one line of at most `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An item the user met, the strongest thing they did with it, and how much it counts."""

    item_id: str
    text: str
    event: EventKind
    weight: float


@dataclasses.dataclass(frozen=True, slots=True)
class Taste:
    """What is known of a user; false if that is nothing."""

    profile: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, input: RankInput, now: datetime) -> Taste:
        """Read the newest events: each weighs as its kind does, halved per half-life of age.

        Several events with one item add up. An event without a time counts as just now.
        """
        weights = defaults.EVENT_WEIGHTS | input.event_weights
        dated = sorted(
            ((min(event.ts or now, now), i, event) for i, event in enumerate(input.user.history)),
            key=lambda entry: entry[:2],
        )[-defaults.NEWEST_EVENTS :]
        half_life = timedelta(days=input.half_life_days)
        by_item: dict[str, list[tuple[float, Event]]] = defaultdict(list)
        for time, _, event in dated:
            # Only relative ages matter, and those of an old history must not underflow.
            weight = weights[event.event] * 0.5 ** ((dated[-1][0] - time) / half_life)
            if event.text.strip() and weight > 0:
                by_item[event.item_id].append((weight, event))
        entries = [
            Entry(
                item_id=item_id,
                text=one_line(events[-1][1].text, TITLE),
                event=max((event.event for _, event in events), key=weights.__getitem__),
                weight=sum(weight for weight, _ in events),
            )
            for item_id, events in by_item.items()
        ]
        profile = one_line(input.user.profile, TITLE)
        return cls(profile, tuple(sorted(entries, key=lambda e: (e.weight, e.item_id))))

    def __bool__(self) -> bool:
        return bool(self.profile or self.entries)

    @classmethod
    def of_titles(cls, titles: Sequence[str]) -> Taste:
        """The taste of whom nothing is known but titles, all of which weigh the same."""
        entries = (
            Entry(item_id=str(number), text=one_line(title, TITLE), event="view", weight=1.0)
            for number, title in enumerate(titles)
        )
        return cls("", tuple(entries))

    @property
    def texts(self) -> tuple[tuple[str, float], ...]:
        """Every text with its weight; the profile weighs as much as the strongest item."""
        strongest = max((entry.weight for entry in self.entries), default=1.0)
        profile = ((self.profile, strongest),) if self.profile else ()
        return (*profile, *((entry.text, entry.weight) for entry in self.entries))


def utc_now() -> datetime:
    return datetime.now(UTC)
