"""Interest: which area of a web site a visitor went to as well (UCI Anonymous Microsoft Web Data).

A row is a history of titles and one more title: the visitor's own (1), or one that the visitor
never went to (0), drawn as often as its popularity to the power of 0.75 says (Mikolov et al. 2013).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptflow_recommendation_scoring.defaults import ADAPTER, READ_BY_HEAD
from gptflow_recommendation_scoring.web_visits import read_visits
from shipped.recipe import UPPER, Recipe, Rows, write_rows

NEGATIVES = 4
TRAIN, DEV, TEST = 1200, 150, 500
"""Visitors, of whom each gives a positive row and the negative ones."""

ALIKE = 3
"""Most visitors to train on who have one history: their rows are one query, of up to 16 rows."""

_POWER = 0.75

Visits = Mapping[str, Sequence[str]]
"""Titles by visitor, the oldest first."""


def prepare(data: Path, out: Path) -> Sequence[Rows]:
    """The published splits; each visitor is in one part only.

    One visit of each is held out by lot, as the benchmarks have it: the file does not say when they
    were made, and what it lists last is no sample of what people visit.
    """
    visits = {
        part: _several(data / f"uci_msweb/anonymous-msweb.{part}.gz") for part in ("data", "test")
    }
    counts = Counter(title for titles in visits["data"].values() for title in titles)
    popularity = {title: count**_POWER for title, count in counts.items()}

    generator = random.Random(0)  # noqa: S311  not for secrets
    known, asked = (_by_lot(visits[part], generator) for part in ("data", "test"))
    dev = _choose(visits["data"], known, DEV, alike=1)
    train = _choose(
        visits["data"], {u: known[u] for u in known if u not in dev}, TRAIN, alike=ALIKE
    )
    test = _choose(visits["test"], asked, TEST, alike=1)

    parts: Any = (("train", "data", train), ("dev", "data", dev), ("test", "test", test))
    return [
        Rows(
            path=write_rows(
                out / f"{split}.jsonl", _rows(part, visits[part], chosen, popularity, generator)
            ),
            split=split,
            name="UCI Anonymous Microsoft Web Data",
            licence="CC BY 4.0",
        )
        for split, part, chosen in parts
    ]


def _several(path: Path) -> Visits:
    """Who visited two areas or more."""
    visits, names = read_visits(path)
    titles = {area: " ".join(name.split()) for area, name in names.items()}
    return {user: [titles[a] for a in own] for user, own in visits.items() if len(own) > 1}


def _by_lot(visits: Visits, generator: random.Random) -> dict[str, int]:
    """In any order, the visitors and the place of one visit of each."""
    draw = random.Random(0)  # noqa: S311  not for secrets
    places = {user: draw.randrange(len(titles)) for user, titles in visits.items()}
    users = generator.sample(list(places), len(places))
    return {user: places[user] for user in users}


def _history(titles: Sequence[str], place: int) -> str:
    """All visits but that at `place`, a line each; the newest that the head reads."""
    return "\n".join([*titles[:place], *titles[place + 1 :]][-READ_BY_HEAD:])


def _choose(visits: Visits, places: Mapping[str, int], most: int, *, alike: int) -> dict[str, int]:
    """The first visitors, with the place that is held out; of one history no more than `alike`."""
    chosen: dict[str, int] = {}
    known: Counter[str] = Counter()
    for user, place in places.items():
        history = _history(visits[user], place)
        if len(chosen) < most and known[history] < alike:
            known[history] += 1
            chosen[user] = place
    return chosen


def _rows(
    part: str,
    visits: Visits,
    held_out: Mapping[str, int],
    popularity: Mapping[str, float],
    generator: random.Random,
) -> Iterator[dict[str, Any]]:
    titles, weights = list(popularity), list(popularity.values())
    for user, place in held_out.items():
        own = visits[user]
        query, drawn = _history(own, place), {own[place]: 1}
        while len(drawn) <= NEGATIVES:
            [title] = generator.choices(titles, weights)
            if title not in own:
                drawn[title] = 0
        for title, score in drawn.items():
            # The published files number their visitors alike.
            group = f"{part}-{user}"
            yield {"query": query, "candidate": title, "score": score, "group": group}


RECIPE = Recipe(
    alias=ADAPTER,
    plugin="recommendation_scoring",
    task="recommend.interest",
    kind="scores",
    prepare=prepare,
    # People who made the same visits are no copies of each other.
    settings={**UPPER, "batch": 16, "epochs": 3, "evaluations": 1, "keep_repeats": True},
    gates={"r@1": 0.45, "mrr": 0.65},
)
