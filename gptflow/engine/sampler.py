"""Sampling: the next token of every sequence that wants one.

Each sequence draws one number of its own per token and looks it up in its own distribution,
so that what it says depends on its seed and not on who else is in the batch. What goes wrong
with one row stays in that row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch

from gptflow.engine.copies import upload
from gptflow.engine.sequence import Decoding, Sampling
from gptflow.engine.summary import Summary, summarize
from gptflow.errors import EngineError

_COLDEST = 0.01
"""Below this temperature the likeliest token is as good as certain: it is taken undrawn."""

_CANDIDATES = 512
"""Tokens to sort at first; nearly always enough for top-p, and far fewer than all."""

_ROWS_AT_ONCE = {"cpu": 8, "cuda": 32}
"""Rows to draw for together: on a CPU as many as stay near the processor."""


class Drawn(NamedTuple):
    """A token, and its log-probability under the model as it is.

    That is before penalties, temperature and grammar.
    """

    token: int
    logprob: float


def sample(
    logits: torch.Tensor,
    sequences: Rows[Decoding],
    summarize: Callable[[torch.Tensor], Summary] = summarize,
) -> list[Drawn | Exception]:
    """Draw one token per row.

    Args:
        logits: `[rows, vocabulary]` in float32; changed in place.
        sequences: the rows' sequences.
        summarize: how to read off what every row needs.

    Returns:
        Per row its token, or the exception that the row failed with: an `EngineError` where
        the model's output is not a number or the grammar admits nothing, and whatever a
        grammar raises.
    """
    highest, tokens, norms = summarize(logits)
    raw = logits
    failed: dict[int, Exception] = {}
    if any(s.constraint or s.sampling.repetition_penalty != 1 for s in sequences):
        raw = logits.clone()
        for i, sequence in enumerate(sequences):
            try:
                _shape(logits[i], sequence)
            except Exception as error:  # noqa: BLE001  the caller's to report
                failed[i] = error
        highest, tokens, _ = summarize(logits)
    lots = [
        _Lot(i, sequence.sampling, sequence.draw())
        for i, sequence in enumerate(sequences)
        if i not in failed and sequence.sampling.temperature >= _COLDEST
    ]
    size = _CANDIDATES
    while True:
        short = _draw(logits, highest, tokens, lots, size)
        logprobs = raw.gather(1, tokens[:, None])[:, 0] - norms
        # All that is read of a step, in one copy: nothing before it waits for the device.
        rows = torch.stack(
            [column.double() for column in (tokens, logprobs, norms, highest, short)]
        )
        drawn = list(zip(*rows.tolist(), strict=True))
        lots = [lot for lot in lots if drawn[lot.row][4]]
        if not lots:
            break
        size *= 8
    for i, (_, _, norm, peak, _) in enumerate(drawn):
        if not math.isfinite(norm):
            failed[i] = EngineError("The model's output for this request is not a number.")
        elif not math.isfinite(peak):
            failed.setdefault(i, EngineError("The grammar and the settings leave no token."))
    return [failed.get(i) or Drawn(int(row[0]), row[1]) for i, row in enumerate(drawn)]


def _shape(row: torch.Tensor, sequence: Decoding) -> None:
    """Apply what depends on the tokens so far: the penalty and the grammar."""
    if sequence.sampling.repetition_penalty != 1:
        _penalise(row, sequence)
    if sequence.constraint is not None:
        row.masked_fill_(upload(~sequence.constraint.mask(), row.device), -torch.inf)


def _penalise(row: torch.Tensor, sequence: Decoding) -> None:
    """Make the tokens seen so far less likely (Keskar et al. 2019, as in transformers)."""
    seen = upload(list(set(sequence.tokens)), row.device)
    values = row[seen]
    penalty = sequence.sampling.repetition_penalty
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


class _Lot(NamedTuple):
    """A row to draw for, with its sequence's next random number in 0..1."""

    row: int
    sampling: Sampling
    number: float

    @property
    def candidates(self) -> int | None:
        """How many of the likeliest tokens there are to draw from: 0 is no number; None all."""
        sampling = self.sampling
        if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
            return None
        return sampling.top_k


def _draw(
    logits: torch.Tensor, highest: torch.Tensor, tokens: torch.Tensor, lots: Rows[_Lot], size: int
) -> torch.Tensor:
    """Draw for some rows, and put what was drawn in its place in `tokens`.

    Each row's arithmetic is its own, whoever is drawn for at the same time.

    Args:
        size: candidates to look at where the settings do not say how many there are.

    Returns:
        The rows for which these were too few; `[rows]` of bool.
    """
    short = torch.zeros_like(tokens, dtype=torch.bool)
    groups: dict[int | None, list[_Lot]] = {}
    for lot in lots:
        groups.setdefault(lot.candidates, []).append(lot)
    block = _ROWS_AT_ONCE[logits.device.type]
    for candidates, group in groups.items():
        for at in range(0, len(group), block):
            some = group[at : at + block]
            rows = upload([lot.row for lot in some], logits.device)
            # The highest logit becomes 0, so that dividing by a temperature cannot overflow.
            scores = logits[rows] - highest[rows, None]
            settings = upload(
                [
                    (lot.number, lot.sampling.temperature, lot.sampling.top_p, lot.sampling.min_p)
                    for lot in some
                ],
                logits.device,
                torch.double,
            )
            tokens[rows], short[rows] = _look_at(scores, settings, candidates, size)
    return short


def _look_at(
    scores: torch.Tensor, settings: torch.Tensor, candidates: int | None, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up each row's number in the distribution that the settings leave of the row.

    Args:
        scores: `[rows, vocabulary]`.
        settings: number, temperature, top-p and min-p; `[rows, 4]`.
        candidates: see `_Lot`.

    Returns:
        The tokens, and whether there may be more candidates than `size`; `[rows]` each.
    """
    numbers = settings[:, :1]
    temperatures, top_p, min_p = settings[:, 1:, None].float().unbind(1)
    probs = torch.softmax(scores / temperatures, dim=-1)
    if candidates is None:
        return _look_up(probs, numbers), torch.zeros_like(numbers[:, 0], dtype=torch.bool)
    vocabulary = probs.shape[1]
    kept, index = torch.topk(probs, min(candidates or size, vocabulary))
    if candidates:
        kept = kept / kept.sum(1, keepdim=True)
    keep = kept >= min_p * kept[:, :1]
    # The token with which the mass reaches p is kept as well.
    keep &= kept.cumsum(1) - kept < top_p
    keep[:, 0] = True  # even where p is 0 in the precision of the row
    chosen = index.gather(1, _look_up(torch.where(keep, kept, 0.0), numbers)[:, None])[:, 0]
    more = keep[:, -1].clone() if not candidates and size < vocabulary else keep[:, 0] & False
    return chosen, more


def _look_up(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Where each number, `[rows, 1]`, falls in its row's probabilities laid end to end."""
    mass = probs.double().cumsum(1)
    places = torch.searchsorted(mass, numbers * mass[:, -1:], right=True)[:, 0]
    # Rounding may carry a number up to the whole mass: past the last token.
    index = torch.arange(probs.shape[1], device=probs.device)
    return torch.minimum(places, torch.where(probs > 0, index, 0).amax(1))
