"""Scoring: the exact log-likelihood of given continuations of one prompt.

All continuations share the prompt's rows. Their tokens but each one's last follow as the nodes
of a trie, depth first, so that continuations with the same first tokens share these rows too;
each row sees the prompt and the nodes above it. A prompt with many labels so costs one prefill
and few rows per label, and a continuation of one token needs no row of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence as Rows

from gptflow.engine.prefix import Prefix
from gptflow.engine.sequence import Sequence
from gptflow.errors import EngineError
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
        self._groups, rows = _pack(self._continuations, self._room)
        self._most_tokens = self.trunk + rows
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
        # No probability is above one; minus infinity is a token that cannot be.
        return any(math.isnan(total) or total == math.inf for total in self._totals)

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
        self.branches = [sys.maxsize] * self.trunk
        self._positions = list(range(self.trunk))
        self.done = min(self.done, self.trunk)
        path: list[tuple[int, int]] = []  # tokens from the prompt's end down, and their rows
        for i in self._groups.pop(0):
            ids = self._continuations[i]
            shared = _common([token for token, _ in path], ids[:-1])
            self._close(path[shared:])
            del path[shared:]
            for token in ids[shared:-1]:
                path.append((token, len(self.tokens)))
                self._positions.append(self.trunk + len(path) - 1)
                self.tokens.append(token)
                self.branches.append(sys.maxsize)
            for (_, row), target in zip(path, ids[1:], strict=True):
                self._targets.setdefault(row, []).append((i, target))
        self._close(path)

    def _close(self, path: list[tuple[int, int]]) -> None:
        """End branches: rows to come do not see these."""
        assert self.branches is not None
        for _, row in path:
            self.branches[row] = len(self.tokens)


def _pack(continuations: Rows[tuple[int, ...]], room: int) -> tuple[list[list[int]], int]:
    """Group the continuations that need rows so that each group's trie fits.

    They are sorted by their tokens: then each shares the most with its neighbours.

    Returns:
        The groups, and how many rows the largest one takes.
    """
    groups: list[list[int]] = []
    left = most = 0
    before: tuple[int, ...] = ()
    order = (i for i, ids in enumerate(continuations) if len(ids) > 1)
    for i in sorted(order, key=lambda i: continuations[i]):
        ids = continuations[i][:-1]
        size = len(ids) - _common(before, ids)
        if not groups or size > left:
            groups.append([])
            left, size = room, len(ids)
        groups[-1].append(i)
        left -= size
        most = max(most, room - left)
        before = ids
    return groups, most


def _common(a: Rows[int], b: Rows[int]) -> int:
    """Length of the longest common beginning."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def choose(head: Choose, scored: Scoring, baseline: Scoring | None, usage: Usage) -> Chosen:
    """`Choose`'s answer: the softmax of the labels' calibrated mean log-probabilities."""
    scores = scored.means
    if baseline is not None:
        scores = tuple(_less(a, b) for a, b in zip(scores, baseline.means, strict=True))
    highest = max(scores)
    # Infinity less itself is no number.
    weights = [1.0 if score == highest else math.exp(score - highest) for score in scores]
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
        return _less(yes, no)
    return _less(_less(yes, no), _less(*baseline.totals))


def _less(a: float, b: float) -> float:
    """The difference of two log-probabilities.

    Raises:
        EngineError: it is not a number, as both say that it cannot be.
    """
    if math.isnan(difference := a - b):
        raise EngineError("The model gives what is to be compared no probability at all.")
    return difference
