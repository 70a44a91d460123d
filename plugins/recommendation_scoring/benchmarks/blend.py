"""A blend fitted on visits, against its parts: UCI "Anonymous Microsoft Web Data".

    python benchmarks/blend.py FOLDER

Of each test user with two visits or more, one is held out and ranked among all areas that the user
has not visited. The blend is fitted on held-out visits of training users. `together`: log of the
largest share of an area's visitors, among the areas of the history, that visited the candidate,
too. `linear`: log of what an item-to-item regression gives (EASE, Steck 2019).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptflow.training.evaluation.floors import session_floors
from gptflow.training.evaluation.sessions import item_cosines, neighbour_scores, popularity, seen
from gptflow_recommendation_scoring.blend import Blend
from gptflow_recommendation_scoring.fitting import Shown, fit
from gptflow_recommendation_scoring.web_visits import read_visits

FITTED_ON = 2000
NEGATIVES = 60
DEPTH = 10
RIDGE = 300.0

Floats = NDArray[np.float64]


class Visits:
    """Training sessions as counts, and the signals of every area for a history."""

    def __init__(self, sessions: list[list[int]], areas: int) -> None:
        self._areas = areas
        table = np.zeros((len(sessions), areas))
        for row, session in enumerate(sessions):
            table[row, session] = 1
        together = table.T @ table
        visitors = popularity(sessions, areas)
        inverse = np.linalg.inv(together + RIDGE * np.eye(areas))
        self._linear = -inverse / np.diag(inverse)
        np.fill_diagonal(self._linear, 0.0)
        self._cosines = item_cosines(sessions, areas)
        self._share = np.log((together + 0.1) / (visitors + 1))
        self._popularity = np.log1p(visitors)

    def signals(self, histories: list[list[int]]) -> dict[str, Floats]:
        """`[histories, areas]` each."""
        held = seen(histories, self._areas).astype(np.float64)
        return {
            "popularity": np.tile(self._popularity, (len(histories), 1)),
            "neighbours": neighbour_scores(self._cosines, histories),
            "together": np.stack([self._share[:, h].max(axis=1) for h in histories]),
            "linear": np.log(np.maximum(held @ self._linear, 1e-4)),
        }


def hold_out(sessions: list[list[int]], seed: int) -> tuple[list[list[int]], list[int]]:
    """Histories without one visit, and that visit."""
    generator = random.Random(seed)
    places = [generator.randrange(len(session)) for session in sessions]
    pairs = list(zip(sessions, places, strict=True))
    return [s[:p] + s[p + 1 :] for s, p in pairs], [s[p] for s, p in pairs]


def shown(signals: dict[str, Floats], mask: NDArray[np.bool_], right: list[int]) -> list[Shown]:
    """Rows to fit on: what was visited, beside a sample of what was not."""
    generator = random.Random(2)
    rows = []
    for user, target in enumerate(right):
        others = [int(i) for i in np.flatnonzero(~mask[user]) if i != target]
        for area in (target, *generator.sample(others, NEGATIVES)):
            features: dict[str, float | None] = {
                n: float(t[user, area]) for n, t in signals.items()
            }
            rows.append(Shown(group=str(user), features=features, taken=area == target))
    return rows


def figures(scores: Floats, mask: NDArray[np.bool_], right: list[int]) -> tuple[float, float]:
    """HR@10 and NDCG@10; ties share the mean of their places."""
    scores = np.where(mask, -np.inf, scores)
    own = scores[np.arange(len(right)), right][:, None]
    rank = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    hit = rank <= DEPTH
    return float(hit.mean()), float(np.where(hit, 1 / np.log2(rank + 1), 0.0).mean())


def blended(blend: Blend, signals: dict[str, Floats]) -> Floats:
    """`[histories, areas]`: the scores of a blend."""
    total: Floats = np.zeros_like(next(iter(signals.values())))
    for name, weight in blend.weights.items():
        total = total + weight * (signals[name] - blend.means.get(name, 0.0))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the UCI files")
    folder = parser.parse_args().folder
    train, _ = read_visits(folder / "anonymous-msweb.data.gz")
    test, _ = read_visits(folder / "anonymous-msweb.test.gz")
    everything = {a for part in (train, test) for visits in part.values() for a in visits}
    number = {area: n for n, area in enumerate(sorted(everything, key=int))}
    sessions = [[number[a] for a in visits] for visits in train.values()]
    asked = [[number[a] for a in visits] for visits in test.values() if len(visits) > 1]
    visits = Visits(sessions, len(number))

    several = [session for session in sessions if len(session) > 1]
    random.Random(1).shuffle(several)
    known, taken = hold_out(several[:FITTED_ON], 1)
    blend = fit(shown(visits.signals(known), seen(known, len(number)), taken))

    histories, right = hold_out(asked, 0)
    mask = seen(histories, len(number))
    signals = visits.signals(histories)
    floors = session_floors(sessions, histories, right, len(number))
    print(f"{len(right)} users, {len(number)} areas")
    print(f"{'ranked by':24} {'HR@10':>6} {'NDCG@10':>8}")
    for name, floor in floors.items():
        found = floor.metrics()
        print(f"{name + ' (floor)':24} {found['hr@10']:6.3f} {found['ndcg@10']:8.3f}")
    ranked = {**signals, "blend": blended(blend, signals)}
    for name, table in ranked.items():
        hits, gain = figures(table, mask, right)
        print(f"{name:24} {hits:6.3f} {gain:8.3f}")
    print("weights:", {name: round(weight, 3) for name, weight in blend.weights.items()})


if __name__ == "__main__":
    main()
