"""Ranking: signals to contributions to an order. No model, and nothing depends on the order
in which the candidates are given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime

from gptflow_recommendation_scoring.defaults import INTEREST, POPULARITY, SIMILARITY, WEIGHTS
from gptflow_recommendation_scoring.schema import Candidate, Dropped, RankInput
from gptflow_recommendation_scoring.taste import Entry, Taste
from gptflow_recommendation_scoring.text_space import TextSpace

_DIGITS = 6
"""Of contributions and scores, so that scores that differ by rounding alone are ties."""


def admit(input: RankInput) -> tuple[list[Candidate], list[Dropped]]:
    """The candidates to rank, and those that the user knows or that come twice.

    Of candidates with the same id the one that says most is kept.
    """
    seen = {event.item_id for event in input.user.history} if input.drop_seen else set()
    kept: dict[str, Candidate] = {}
    dropped: list[Dropped] = []
    for candidate in sorted(input.candidates, key=_fullest_first):
        if candidate.item_id in seen:
            dropped.append(Dropped(item_id=candidate.item_id, reason="seen"))
        elif candidate.item_id in kept:
            dropped.append(Dropped(item_id=candidate.item_id, reason="duplicate"))
        else:
            kept[candidate.item_id] = candidate
    return list(kept.values()), dropped


def _fullest_first(candidate: Candidate) -> tuple[str, int, int, str]:
    return (
        candidate.item_id,
        -len(candidate.features),
        -len(candidate.text),
        json.dumps(candidate.model_dump(), sort_keys=True),
    )


def spread(values: Sequence[float | None]) -> list[float]:
    """Each value's place among the others, from -1 for the least to 1; 0 where it is missing.

    Equal values share the mean of their places. Places are the same in euros and in cents, and
    one best-seller does not make all other items look alike.
    """
    known = sorted(value for value in values if value is not None)
    if len(known) < 2:
        return [0.0] * len(values)
    return [
        0.0
        if value is None
        else (bisect_left(known, value) + bisect_right(known, value) - 1) / (len(known) - 1) - 1
        for value in values
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """One candidate with what speaks for and against it."""

    candidate: Candidate
    contributions: Mapping[str, float]
    missing: tuple[str, ...]
    score: float
    cold: bool


class Slate:
    """The candidates of one request, compared with each other.

    Args:
        taste: what is known of the user; without it only the given features count.
        now: its day decides between items that nothing else tells apart.
    """

    def __init__(
        self, input: RankInput, candidates: Sequence[Candidate], taste: Taste, now: datetime
    ) -> None:
        self._candidates = candidates
        self._user, self._day = input.user.id, now.date().isoformat()
        self.space = TextSpace([c.text for c in candidates], [text for text, _ in taste.texts])
        self.blend = input.blend
        names = {name for candidate in candidates for name in candidate.features}
        asked = input.weights if self.blend is None else self.blend.weights
        given = WEIGHTS | asked if self.blend is None else dict(asked)
        self.unweighted = sorted(names - set(given))
        self.unknown = sorted(set(asked) - names - {INTEREST, SIMILARITY})
        self.weights = {name: given[name] for name in sorted(names & set(given))}
        if taste:
            self.weights |= {n: given[n] for n in (SIMILARITY, INTEREST) if n in given}
        self.weights = {name: weight for name, weight in self.weights.items() if weight}
        self._signals = {name: self._signal(name, taste) for name in self.weights}

    def _signal(self, name: str, taste: Taste) -> list[float | None]:
        if name == INTEREST:
            return [None] * len(self._candidates)
        if name != SIMILARITY:
            return [candidate.features.get(name) for candidate in self._candidates]
        cosines = self.space.cosines(self.space.mean(taste.texts))
        return [
            cosines.get(number, 0.0) if vector else None
            for number, vector in enumerate(self.space.vectors)
        ]

    def for_model(self, limit: int) -> list[int]:
        """The candidates that the model should read: the best by everything else."""
        if INTEREST not in self.weights:
            return []
        order = self.best_first(self.standings({}))
        return [i for i in order if self._candidates[i].text.strip()][:limit]

    def nearest(self, taste: Taste) -> dict[int, Entry]:
        """The most similar item of the history, for the candidates that share a word with one."""
        best: dict[int, tuple[float, Entry]] = {}
        for entry in taste.entries:
            for i, cosine in self.space.cosines(self.space.mean([(entry.text, 1.0)])).items():
                if cosine >= best.get(i, (0.0,))[0]:  # the strongest entry comes last
                    best[i] = (cosine, entry)
        return {i: entry for i, (_, entry) in best.items()}

    def standings(self, margins: Mapping[int, float]) -> list[Standing]:
        """Every candidate's contributions.

        A signal that is missing contributes 0. The exception is the interest of a candidate
        whose text the model could have read but did not: it takes the least, -1. By everything
        else it did worse than those that were read, and so it never overtakes one of them.
        """
        signals = dict(self._signals)
        if INTEREST in signals:
            signals[INTEREST] = [margins.get(i) for i in range(len(self._candidates))]
        values = {name: self._values(name, signal) for name, signal in signals.items()}
        if INTEREST in signals and margins:
            least = min(values[INTEREST][i] for i in margins) if self.blend else -1.0
            for i, candidate in enumerate(self._candidates):
                if i not in margins and candidate.text.strip():
                    values[INTEREST][i] = least
        return [
            self._standing(
                candidate,
                {name: weight * values[name][i] for name, weight in self.weights.items()},
                tuple(name for name in self.weights if signals[name][i] is None),
            )
            for i, candidate in enumerate(self._candidates)
        ]

    def _values(self, name: str, signal: Sequence[float | None]) -> list[float]:
        if self.blend is None:
            return spread(signal)
        return [self.blend.centred(name, value) for value in signal]

    def _standing(
        self, candidate: Candidate, parts: Mapping[str, float], missing: tuple[str, ...]
    ) -> Standing:
        contributions = {name: round(part, _DIGITS) + 0.0 for name, part in parts.items()}
        given = set(self.weights) - {INTEREST, SIMILARITY}
        return Standing(
            candidate=candidate,
            contributions=contributions,
            missing=missing,
            score=round(math.fsum(contributions.values()), _DIGITS) + 0.0,
            cold=not candidate.text.strip() or (bool(given) and given <= set(missing)),
        )

    def best_first(self, standings: Sequence[Standing]) -> list[int]:
        """Candidates by score, then popularity, then a hash of user, item and day.

        So ties are broken the same way all day, but not in the same item's favour for
        everybody and for ever.
        """

        def key(i: int) -> tuple[float, float, str]:
            candidate = self._candidates[i]
            popularity = candidate.features.get(POPULARITY)
            lot = json.dumps([self._user, candidate.item_id, self._day])
            return (
                -standings[i].score,
                math.inf if popularity is None else -popularity,
                hashlib.sha256(lot.encode()).hexdigest(),
            )

        return sorted(range(len(standings)), key=key)
