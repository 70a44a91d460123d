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

from gptflow.engine.sequence import Decoding, Sampling
from gptflow.engine.summary import Summary, summarize
from gptflow.errors import EngineError

_COLDEST = 0.01
"""Below this temperature the likeliest token is as good as certain: it is taken undrawn."""

_CANDIDATES = 512
"""Tokens to sort at first; nearly always enough for top-p, and far fewer than all."""


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
    for i, (norm, peak) in enumerate(zip(norms.tolist(), highest.tolist(), strict=True)):
        if not math.isfinite(norm):
            failed[i] = EngineError("The model's output for this request is not a number.")
        elif not math.isfinite(peak):
            failed.setdefault(i, EngineError("The grammar and the settings leave no token."))
        elif i not in failed and sequences[i].sampling.temperature >= _COLDEST:
            tokens[i] = _draw(logits[i] - peak, sequences[i].sampling, sequences[i].draw())
    logprobs = raw.gather(1, tokens[:, None])[:, 0] - norms
    drawn = map(Drawn, tokens.tolist(), logprobs.tolist())
    return [failed.get(i, row) for i, row in enumerate(drawn)]


def _shape(row: torch.Tensor, sequence: Decoding) -> None:
    """Apply what depends on the tokens so far: the penalty and the grammar."""
    if sequence.sampling.repetition_penalty != 1:
        _penalise(row, sequence)
    if sequence.constraint is not None:
        row[~sequence.constraint.mask()] = -torch.inf


def _penalise(row: torch.Tensor, sequence: Decoding) -> None:
    """Make the tokens seen so far less likely (Keskar et al. 2019, as in transformers)."""
    seen = torch.tensor(list(set(sequence.tokens)), device=row.device)
    values = row[seen]
    penalty = sequence.sampling.repetition_penalty
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _draw(row: torch.Tensor, sampling: Sampling, number: float) -> int:
    """Look up `number` in 0..1 in the distribution that the settings leave of a row.

    The row's highest logit is 0, so that dividing by a temperature cannot overflow.
    """
    probs = torch.softmax(row / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return _look_up(probs, number)
    size = sampling.top_k or _CANDIDATES
    while True:
        kept, index = torch.topk(probs, min(size, len(probs)))
        if sampling.top_k:
            kept = kept / kept.sum()
        keep = kept >= sampling.min_p * kept[0]
        # The token with which the mass reaches p is kept as well.
        keep &= kept.cumsum(0) - kept < sampling.top_p
        keep[0] = True  # even where p is 0 in the precision of the row
        if sampling.top_k or not keep[-1] or len(kept) == len(probs):
            return int(index[_look_up(torch.where(keep, kept, 0.0), number)])
        size *= 8


def _look_up(probs: torch.Tensor, number: float) -> int:
    mass = probs.double().cumsum(0)
    place = int(torch.searchsorted(mass, number * mass[-1].item(), right=True))
    # Rounding may carry the number up to the whole mass: past the last token.
    return place if place < len(probs) else int(probs.nonzero()[-1])
