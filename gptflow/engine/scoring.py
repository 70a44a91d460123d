"""Scoring: the exact log-likelihood of given continuations of one prompt.

All continuations share the prompt's rows. Each one's tokens but the last follow as a branch of
rows that sees the prompt and itself, so that a prompt with many labels costs one prefill and a
few rows per label. A continuation of one token needs no row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

from gptflow.engine.prefix import Prefix
from gptflow.engine.sequence import Sequence
from gptflow.heads import Choose, Chosen, Usage
from gptflow.request import JobClass

Target = tuple[int, int]
"""A continuation's number, and its token that a row is to predict."""


class Scoring(Sequence):
    """A prompt and the continuations to score under it.

    Args:
        tokens: the prompt.
        continuations: token ids of each continuation, none of them empty.
        room: rows that fit in a slot. Branches that do not fit beside the prompt at the same
            time are computed one group after another, in the same place.
    """

    def __init__(
        self,
        tokens: Rows[int],
        continuations: Rows[tuple[int, ...]],
        *,
        room: int,
        prefix: Prefix | None = None,
        job_class: JobClass = "standard",
    ) -> None:
        super().__init__(tokens, prefix=prefix, job_class=job_class)
        self._continuations = continuations
        self._room = room - self.trunk
        self.restart()

    def restart(self) -> None:
        """Begin anew: what has been scored so far counts for nothing."""
        super().restart()
        del self.tokens[self.trunk :]
        self.branches = None
        self._totals = [0.0] * len(self._continuations)
        self._positions: list[int] = []
        self._targets: dict[int, list[Target]] = {
            self.trunk - 1: [(i, tokens[0]) for i, tokens in enumerate(self._continuations)]
        }
        sizes = [len(tokens) - 1 for tokens in self._continuations]
        self._groups = _pack(sizes, self._room)
        self._most_tokens = self.trunk + max(
            (sum(sizes[i] for i in group) for group in self._groups), default=0
        )
        self._branch_off()

    @property
    def most_tokens(self) -> int:
        return self._most_tokens

    @property
    def ended(self) -> bool:
        return self.remaining == 0 and not self._groups

    @property
    def spoiled(self) -> bool:
        """The model's output was not a number somewhere."""
        return any(map(math.isnan, self._totals))

    @property
    def totals(self) -> tuple[float, ...]:
        """Per continuation, the sum of its tokens' log-probabilities."""
        return tuple(self._totals)

    @property
    def means(self) -> tuple[float, ...]:
        """Per continuation, the mean of its tokens' log-probabilities."""
        return tuple(
            total / len(tokens)
            for total, tokens in zip(self._totals, self._continuations, strict=True)
        )

    def positions(self, start: int, stop: int) -> Rows[int]:
        return self._positions[start:stop] if self._positions else range(start, stop)

    def targets(self, start: int, stop: int) -> list[tuple[int, Target]]:
        """What rows `start:stop` are to predict, with the row's number."""
        return [(row, t) for row in range(start, stop) for t in self._targets.pop(row, ())]

    def add(self, continuation: int, logprob: float) -> None:
        """Take the log-probability of a continuation's next token."""
        self._totals[continuation] += logprob

    def advance(self) -> None:
        """Once all rows are computed: go on with the next group of branches."""
        if self.remaining == 0 and self._groups:
            self._branch_off()
            self.charged = min(self.charged, self.trunk)

    def _branch_off(self) -> None:
        """Put the next group of branches after the prompt, in place of the last one."""
        if not self._groups:
            return
        del self.tokens[self.trunk :]
        self.branches = [0] * self.trunk
        self._positions = list(range(self.trunk))
        self.done = min(self.done, self.trunk)
        for i in self._groups.pop(0):
            ids = self._continuations[i]
            for offset, token in enumerate(ids[:-1]):
                self._targets[len(self.tokens)] = [(i, ids[offset + 1])]
                self._positions.append(self.trunk + offset)
                self.tokens.append(token)
                self.branches.append(i + 1)


def _pack(sizes: Rows[int], room: int) -> list[list[int]]:
    """Group the continuations that need rows so that each group fits."""
    groups: list[list[int]] = []
    left = 0
    for i, size in enumerate(sizes):
        if size == 0:
            continue
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(i)
        left -= size
    return groups


def choose(head: Choose, scored: Scoring, baseline: Scoring | None, usage: Usage) -> Chosen:
    """`Choose`'s answer: the softmax of the labels' calibrated mean log-probabilities."""
    scores = scored.means
    if baseline is not None:
        scores = tuple(a - b for a, b in zip(scores, baseline.means, strict=True))
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = sum(weights)
    return Chosen(
        label=head.labels[scores.index(highest)],
        probs={label: w / total for label, w in zip(head.labels, weights, strict=True)},
        scores=dict(zip(head.labels, scores, strict=True)),
        usage=usage,
    )


def log_odds(scored: Scoring, baseline: Scoring | None) -> float:
    """`Score`'s value: log P(yes) - log P(no), less the same under the baseline."""
    yes, no = scored.totals
    if baseline is None:
        return yes - no
    blank_yes, blank_no = baseline.totals
    return (yes - no) - (blank_yes - blank_no)
