"""Splits: train, dev and test, so that the test is of what the model has not seen.

Rows of one group stay together, and so do duplicates: a copy of a training row tests nothing.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Generic, Literal, TypeVar

from gptflow.errors import SplitImpossible
from gptflow.training.data.duplicates import Duplicate, groups_of
from gptflow.training.data.rows import Row

RowT = TypeVar("RowT", bound=Row)

Method = Literal["random", "stratified", "grouped", "temporal"]
METHODS: tuple[Method, ...] = ("random", "stratified", "grouped", "temporal")


@dataclasses.dataclass(frozen=True, slots=True)
class Split(Generic[RowT]):
    """The parts, each in the order in which the rows were given."""

    train: tuple[RowT, ...]
    dev: tuple[RowT, ...]
    test: tuple[RowT, ...]

    @property
    def parts(self) -> dict[str, tuple[RowT, ...]]:
        return {"train": self.train, "dev": self.dev, "test": self.test}


def split(
    rows: Sequence[RowT],
    *,
    method: Method = "stratified",
    dev: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    duplicates: Iterable[Duplicate] = (),
) -> Split[RowT]:
    """Divide rows.

    Args:
        method: `random`; `stratified`, each part has the classes in the same proportions as far
            as they can be divided; `grouped`, by `Row.group`; `temporal`, the newest rows are
            the test and those before them are dev. Stratified and random splits keep groups
            together too where rows have any.
        dev: share of the rows; 0 for no such part.
        test: share of the rows; 0 for no such part.
        seed: the same one gives the same split.
        duplicates: pairs of rows that must not part.

    Raises:
        SplitImpossible: a share is out of range, rows lack what the method goes by, or a part
            would be empty.
    """
    shares = {"test": test, "dev": dev}
    if min(shares.values()) < 0 or test + dev >= 1:
        raise SplitImpossible(
            f"Shares of {test:g} for test and {dev:g} for dev leave nothing to train on.",
            hint="Give shares from 0, of less than 1 together.",
        )
    if method == "temporal":
        places = _temporal(rows, shares)
    else:
        if method == "grouped" and (lone := next((r for r in rows if r.group is None), None)):
            raise SplitImpossible(
                f"{lone.origin} has no group.", hint="Name the field: `--group user`."
            )
        units = _units(rows, groups_of(len(rows), [*duplicates]))
        places = _assign(rows, units, shares, random.Random(seed), method == "stratified")  # noqa: S311
    for name, share in shares.items():
        if share and not places[name]:
            raise SplitImpossible(
                f"{len(rows)} rows in so few groups leave none for {name}.",
                hint=f"Give more rows, or a larger share: `--{name} {min(0.5, share * 2):g}`.",
            )
    if not places["train"]:
        raise SplitImpossible("No row is left to train on.", hint="Give more rows.")
    chosen = {name: tuple(rows[p] for p in sorted(places[name])) for name in places}
    return Split(chosen["train"], chosen["dev"], chosen["test"])


def _units(rows: Sequence[Row], duplicates: Sequence[int]) -> list[list[int]]:
    """Places that go together: of one group, or duplicates, or both through others."""
    firsts: dict[str, int] = {}
    pairs = [Duplicate(min(p, d), max(p, d), 1.0, "exact") for p, d in enumerate(duplicates)]
    for place, row in enumerate(rows):
        if row.group is not None:
            first = firsts.setdefault(row.group, place)
            pairs.append(Duplicate(first, place, 1.0, "exact"))
    units: defaultdict[int, list[int]] = defaultdict(list)
    for place, root in enumerate(groups_of(len(rows), pairs)):
        units[root].append(place)
    return list(units.values())


def _assign(
    rows: Sequence[Row],
    units: list[list[int]],
    shares: dict[str, float],
    generator: random.Random,
    stratified: bool,
) -> dict[str, list[int]]:
    """Give each unit to the part that lacks most of what the unit holds.

    Large units first, as small ones fill up what they leave (Sechidis et al. 2011 for several
    classes a row).
    """
    parts = {"train": 1 - sum(shares.values()), **shares}
    counts = {place: Counter(_classes(rows[place], stratified)) for unit in units for place in unit}
    totals: Counter[str] = Counter()
    for each in counts.values():
        totals.update(each)
    lacks = {
        name: {label: share * count for label, count in totals.items()}
        for name, share in parts.items()
    }
    generator.shuffle(units)
    held = [sum((counts[place] for place in unit), Counter[str]()) for unit in units]
    # Within a size, units of rare classes choose first.
    order = sorted(
        range(len(units)),
        key=lambda number: (-len(units[number]), min(totals[label] for label in held[number])),
    )
    places: dict[str, list[int]] = {name: [] for name in parts}
    for number in order:
        rarest = min(held[number], key=lambda label: (totals[label], label))
        name = max(
            (name for name, share in parts.items() if share > 0),
            key=lambda name: (
                lacks[name][rarest],
                sum(lacks[name][label] for label in held[number]),
            ),
        )
        places[name] += units[number]
        for label, count in held[number].items():
            lacks[name][label] -= count
    return places


def _classes(row: Row, stratified: bool) -> tuple[str, ...]:
    """The classes to keep in proportion; every row is of one at least."""
    return (row.classes or ("",)) if stratified else ("",)


def _temporal(rows: Sequence[Row], shares: dict[str, float]) -> dict[str, list[int]]:
    """By time; rows of one moment stay together, on the older side."""
    times: list[float] = []
    for row in rows:
        if row.time is None:
            raise SplitImpossible(
                f"{row.origin} has no time.", hint="Name the field: `--time created_at`."
            )
        times.append(row.time)
    order = sorted(range(len(rows)), key=lambda place: (times[place], place))
    places: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    first_test = round(len(order) * (1 - shares["test"]))
    first_dev = round(len(order) * (1 - shares["test"] - shares["dev"]))
    borders = [_same_moment(order, times, border) for border in (first_dev, first_test)]
    places["train"] = order[: borders[0]]
    places["dev"] = order[borders[0] : borders[1]]
    places["test"] = order[borders[1] :]
    return places


def _same_moment(order: Sequence[int], times: Sequence[float], border: int) -> int:
    while 0 < border < len(order) and times[order[border]] == times[order[border - 1]]:
        border += 1
    return border
